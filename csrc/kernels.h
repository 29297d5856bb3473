// The kernels, with the names that every backend has: declared, instantiated and bound from here.
#pragma once

#include "geometry.h"
#include "tiles/tiles.h"

namespace fastconv {

// How a convolution is computed: by any algorithm, by any that sums the products of the definition, or by
// one.
enum class Algorithm { automatic, direct, gemm, window, depthwise, winograd };
constexpr const char* kAlgorithmNames[] = {"auto", "direct", "gemm", "window", "depthwise", "winograd"};

// What a caller decides about a convolution besides its operands.
struct Settings {
    Algorithm algorithm;
    int threads;
    Index workspace_limit; // bytes of temporary memory, or kNoLimit
};
constexpr Index kNoLimit = -1;

// X(T) for each element type of a family of kernels.
#define FASTCONV_CONV_TYPES(X) X(float) X(double) X(std::int32_t) X(std::int64_t)
#define FASTCONV_MEAN_TYPES(X) X(float) X(double)
#define FASTCONV_MAX_TYPES(X) \
    X(float)                  \
    X(double)                 \
    X(std::int8_t)            \
    X(std::int16_t)           \
    X(std::int32_t) X(std::int64_t) X(std::uint8_t) X(std::uint16_t) X(std::uint32_t) X(std::uint64_t)

// An algorithm that cannot serve the geometry throws std::invalid_argument, and where none keeps to the limit
// of workspace, WorkspaceError (algorithms.h).
template <class T>
void conv_forward(const T* x, const T* weight, const T* bias, Activation activation, T* y,
                  const ConvGeometry& geometry, const Settings& settings);

template <class T>
void conv_grad_input(const T* grad_y, const T* weight, const T* bias, Activation activation, T* grad_x,
                     const ConvGeometry& geometry, const Settings& settings);

template <class T>
void conv_grad_weight(const T* x, const T* grad_y, T* grad_weight, const ConvGeometry& geometry,
                      const Settings& settings);

// `indices` may be null.
template <class T>
void max_pool(const T* x, T* y, Index* indices, const PoolGeometry& geometry, int threads);

// Returns -1, or the flat position of an index outside [-1, input_plane).
template <class T>
Index max_pool_grad_input(const T* grad_y, const Index* indices, T* grad_x, Index planes, Index output_plane,
                          Index input_plane, int threads);

template <class T>
void avg_pool(const T* x, T* y, const PoolGeometry& geometry, int threads);

template <class T>
void avg_pool_grad_input(const T* grad_y, T* grad_x, const PoolGeometry& geometry, int threads);

} // namespace fastconv

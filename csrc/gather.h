// Convolutions as gathers. On each axis result j, stored at out_start + j*out_step, reads source j*step +
// offset for every tap; the forward convolution and each stride phase of the input gradient are such products
// of three axes.
#pragma once

#include <stdexcept>
#include <type_traits>
#include <vector>

#include "buffers.h"
#include "geometry.h"
#include "kernels.h"
#include "parallel.h"
#include "tiles/tiles.h"

namespace fastconv {

struct GatherTap {
    Index kernel_position, offset;
};

struct GatherAxis {
    Index outputs, source_size;
    Index step;
    Index out_start, out_step;
    std::vector<GatherTap> taps;
};

struct GatherPlan {
    std::array<GatherAxis, 3> axes;

    Index outputs() const { return axes[0].outputs * axes[1].outputs * axes[2].outputs; }
    Index taps() const {
        return static_cast<Index>(axes[0].taps.size() * axes[1].taps.size() * axes[2].taps.size());
    }

    template <class Visit>
    void for_each_tap(const Visit& visit) const {
        for (const GatherTap& d : axes[0].taps)
            for (const GatherTap& h : axes[1].taps)
                for (const GatherTap& w : axes[2].taps)
                    visit(d, h, w);
    }

    // Where in a kernel of this size the taps lie.
    std::vector<Index> kernel_positions(const Size3& kernel) const {
        std::vector<Index> positions;
        positions.reserve(static_cast<std::size_t>(taps()));
        for_each_tap([&](const GatherTap& d, const GatherTap& h, const GatherTap& w) {
            positions.push_back((d.kernel_position * kernel[1] + h.kernel_position) * kernel[2] +
                                w.kernel_position);
        });
        return positions;
    }
};

// What an algorithm makes of the weights, for a plan (conv_plan.h): the first run leaves it here, later ones
// of the same problem with other sources and results only read it.
struct KeptWeights {
    KeptWeights() = default;
    ~KeptWeights() { BufferPool::instance().give(std::move(memory)); }
    KeptWeights(const KeptWeights&) = delete;
    KeptWeights& operator=(const KeptWeights&) = delete;

    Memory memory; // of the pool
    bool complete = false;
};

// One pass over a layer: `sources` channels of each group are weighted and summed into its `results`
// channels.
template <class T>
struct GatherProblem {
    Index batch, groups;
    Index sources, results; // channels of a group
    Size3 source_size, result_size, kernel;
    const T* source;
    T* result;
    const T* weight;                    // of group 0
    Index group_stride;                 // from one group's weights to the next
    Index source_stride, result_stride; // from one source or result channel's weights to the next
    const T* bias;                      // by result channel, or null
    Activation activation;
    std::vector<GatherPlan> plans;
    bool complete; // whether the plans cover every result
    KeptWeights* kept = nullptr;

    bool weights_are_kept() const { return kept != nullptr && kept->complete; }
};

// Memory for what an algorithm makes of the weights, and what lies there already where they are kept.
template <class T>
T* weights_memory(const GatherProblem<T>& problem, Index count) {
    if (problem.kept == nullptr)
        return workspace<T>(Slot::weights, count);
    Memory& memory = problem.kept->memory;
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    if (!problem.kept->complete)
        memory = BufferPool::instance().take(bytes);
    else if (memory.size() < bytes)
        throw std::logic_error("kept weights are those of another problem");
    return static_cast<T*>(memory.data());
}

template <class T>
GatherProblem<T> forward_problem(const ConvGeometry& g, const T* x, const T* weight, const T* bias,
                                 Activation activation, T* y);

// The input gradient: where stride > 1, results of equal (position + padding) mod stride share their taps and
// form a plan of their own, in which neighbours read neighbours; no product with a zero between strides is
// ever formed.
template <class T>
GatherProblem<T> grad_input_problem(const ConvGeometry& g, const T* grad_y, const T* weight, const T* bias,
                                    Activation activation, T* grad_x);

// Computes the problem by the algorithm that `choose` takes (algorithms.h).
template <class T>
void gather(const GatherProblem<T>& problem, const Settings& settings);

// Results that no plan covers: the bias alone.
template <class T>
void fill_with_bias(const GatherProblem<T>& problem, int threads);

// The longest running sum of products: sums are made of such parts, in the order of channels.
constexpr Index kDepthOfChunk = 256;

// Weights are turned for so many kernel positions at once, or all of one source.
constexpr Index kElementsTurned = 64;

// Stores whole product tiles row by row, side by side in memory.
template <class T>
class WholeTiles {
public:
    WholeTiles() {
        for (int j = 0; j < tiles<T>().columns; j += tiles<T>().lanes)
            pieces_.push_back({j, j, tiles<T>().lanes});
    }

    TileStore<T> at(T* y, bool first) const { return at(y, first, tiles<T>().columns); }

    // Whole vectors, of which the first `columns` are in use.
    TileStore<T> at(T* y, bool first, Index columns) const {
        TileStore<T> store{};
        store.y = y;
        store.row_stride = tiles<T>().columns;
        store.column_step = 1;
        store.pieces = pieces_.data();
        store.piece_count = static_cast<int>(ceil_div(columns, tiles<T>().lanes));
        store.rows = tiles<T>().rows;
        store.first = first;
        return store;
    }

private:
    std::vector<Piece> pieces_;
};

// How many panels of an implicit matrix product are packed at once where threads share the weights of
// `results`: with the sums of as many tiles they fill half a second-level cache each.
template <class T>
Index shared_panels(Index depth, Index results, int threads) {
    constexpr Index kBytes = 480 << 10;
    const Index column = std::max(depth, ceil_div(results, threads)) * static_cast<Index>(sizeof(T));
    return std::max<Index>(1, kBytes / (column * tiles<T>().columns));
}

// Any geometry: an implicit matrix product over packed panels (gather_gemm.cpp).
template <class T>
void gather_gemm(const GatherProblem<T>& problem, int threads);

// The weights of some source channels for result channels [first, first + width) of a group, zero beyond the
// last: out[(source, tap)][width] for the kernel positions listed in `taps`, in their order; zero for -1.
template <class T>
void pack_weight_block(const GatherProblem<T>& problem, const std::vector<Index>& taps, Index group,
                       Index first, Index width, const Range& sources, T* out);

// Vectors of `channels` in a block of Tiles::outer: the width that wastes the fewest lanes, the widest of
// equals.
template <class T>
int outer_vectors(Index channels) {
    const Tiles<T>& tile = tiles<T>();
    int best = tile.outer_vectors;
    for (int vectors = best / 2; vectors >= 1; vectors /= 2)
        if (round_up(channels, vectors * tile.lanes) < round_up(channels, best * tile.lanes))
            best = vectors;
    return best;
}

// Dense or dilated windows without stride, many channels: Winograd's algorithm
// (winograd.cpp). False where a result would not be finite: a window's infinities and NaNs spread over the
// tile then, and another algorithm has to compute it again.
template <class T>
bool winograd_applies(const GatherProblem<T>& problem);
template <class T>
bool winograd(const GatherProblem<T>& problem, int threads);

// The weight gradient likewise (winograd_grad_weight.cpp), where winograd_applies to the forward problem,
// which has grad_y in place of its results.
template <class T>
bool winograd_grad_weight(const GatherProblem<T>& forward, T* grad_weight, int threads);

// Results that read one source channel each, in floating point: depthwise convolutions (depthwise.cpp).
template <class T>
bool depthwise_applies(const GatherProblem<T>& problem);
template <class T>
void depthwise(const GatherProblem<T>& problem, int threads);

// The weight gradient likewise (depthwise_grad_weight.cpp). `problem` is the forward one, with grad_y in
// place of its results.
template <class T>
bool depthwise_grad_weight_applies(const GatherProblem<T>& problem);
template <class T>
void depthwise_grad_weight(const GatherProblem<T>& problem, T* grad_weight, int threads);

// Few channels and small windows: weighted rows of a padded window (gather_window.cpp).
template <class T>
bool window_applies(const GatherProblem<T>& problem);
template <class T>
void gather_window(const GatherProblem<T>& problem, int threads);

// What sums of sums are kept in.
template <class T>
using Total = std::conditional_t<std::is_same_v<T, float>, double, T>;

// The weight gradient by windows (window_grad_weight.cpp). `problem` is the forward one, with grad_y in place
// of its results.
template <class T>
bool window_grad_weight_applies(const GatherProblem<T>& problem);
template <class T>
void window_grad_weight(const GatherProblem<T>& problem, T* grad_weight, int threads);

} // namespace fastconv

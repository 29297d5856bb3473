// Maximum pooling: of equal elements the first in row-major order wins, NaN over everything, the last NaN
// over others.
#include <limits>

#include "kernels.h"
#include "parallel.h"

namespace fastconv {
namespace {

template <class T>
constexpr T lowest() {
    return std::numeric_limits<T>::has_infinity ? -std::numeric_limits<T>::infinity()
                                                : std::numeric_limits<T>::lowest();
}

// Any windows, by their tables.
template <class T>
void max_plane(const T* x, T* y, Index* indices, const PoolGeometry& g,
               const std::array<std::vector<Window>, 3>& windows) {
    for (const Window& d : windows[0])
        for (const Window& h : windows[1])
            for (const Window& w : windows[2]) {
                T best = lowest<T>();
                Index where = -1;
                for (Index i = 0; i < d.inside; ++i)
                    for (Index j = 0; j < h.inside; ++j) {
                        const Index row =
                            ((d.first + i * g.dilation[0]) * g.input[1] + h.first + j * g.dilation[1]) *
                                g.input[2] +
                            w.first;
                        for (Index k = 0; k < w.inside; ++k) {
                            const Index position = row + k * g.dilation[2];
                            const T value = x[position];
                            if (where < 0 || value > best || value != value) {
                                best = value;
                                where = position;
                            }
                        }
                    }
                *y++ = best;
                if (indices != nullptr)
                    *indices++ = where;
            }
}

} // namespace

template <class T>
void max_pool(const T* x, T* y, Index* indices, const PoolGeometry& g, int threads) {
    const std::array<std::vector<Window>, 3> windows{axis_windows(g, 0), axis_windows(g, 1),
                                                     axis_windows(g, 2)};
    const Index in = volume(g.input), out = volume(g.output);
    const int workers = worthwhile_threads(kMemoryBound * g.planes * (in + out), threads);
    Parallel::run(g.planes, workers, [&](Index plane, int) {
        max_plane(x + plane * in, y + plane * out, indices == nullptr ? nullptr : indices + plane * out, g,
                  windows);
    });
}

template <class T>
Index max_pool_grad_input(const T* grad_y, const Index* indices, T* grad_x, Index planes, Index output_plane,
                          Index input_plane, int threads) {
    std::vector<Index> bad(static_cast<std::size_t>(planes), -1);
    const int workers = worthwhile_threads(kMemoryBound * planes * (input_plane + output_plane), threads);
    Parallel::run(planes, workers, [&](Index plane, int) {
        T* grad = grad_x + plane * input_plane;
        std::fill_n(grad, input_plane, T{});
        for (Index i = plane * output_plane; i < (plane + 1) * output_plane; ++i) {
            const Index where = indices[i];
            if (where >= 0 && where < input_plane) {
                grad[where] += grad_y[i];
            } else if (where != -1 && bad[plane] < 0) {
                bad[plane] = i;
            }
        }
    });
    const auto first = std::find_if(bad.begin(), bad.end(), [](Index i) { return i >= 0; });
    return first == bad.end() ? -1 : *first;
}

#define INSTANTIATE_MAX(T) template void max_pool(const T*, T*, Index*, const PoolGeometry&, int);
#define INSTANTIATE_GRAD(T) \
    template Index max_pool_grad_input(const T*, const Index*, T*, Index, Index, Index, int);
FASTCONV_MAX_TYPES(INSTANTIATE_MAX)
FASTCONV_MEAN_TYPES(INSTANTIATE_GRAD)

} // namespace fastconv

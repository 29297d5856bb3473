// Average pooling: the sum of a window over its divisor, and the adjoint, which gives every element an equal
// share.
#include "kernels.h"
#include "parallel.h"

namespace fastconv {
namespace {

class AverageWindows {
public:
    explicit AverageWindows(const PoolGeometry& g)
        : g_(g), axes_{axis_windows(g, 0), axis_windows(g, 1), axis_windows(g, 2)} {}

    // visit(output position, divisor, one-element visitor) in row-major order.
    template <class Visit>
    void for_each(const Visit& visit) const {
        Index position = 0;
        for (const Window& d : axes_[0])
            for (const Window& h : axes_[1])
                for (const Window& w : axes_[2])
                    visit(position++, divisor(d, h, w), d, h, w);
    }

    // element(input position) for each element of a window.
    template <class Element>
    void for_each_element(const Window& d, const Window& h, const Window& w, const Element& element) const {
        for (Index i = 0; i < d.inside; ++i)
            for (Index j = 0; j < h.inside; ++j) {
                const Index row =
                    ((d.first + i * g_.dilation[0]) * g_.input[1] + h.first + j * g_.dilation[1]) *
                        g_.input[2] +
                    w.first;
                for (Index k = 0; k < w.inside; ++k)
                    element(row + k * g_.dilation[2]);
            }
    }

private:
    double divisor(const Window& d, const Window& h, const Window& w) const {
        if (g_.divisor_override != 0)
            return static_cast<double>(g_.divisor_override);
        const bool pad = g_.count_include_pad;
        const double product = static_cast<double>(pad ? d.length : d.inside) *
                               static_cast<double>(pad ? h.length : h.inside) *
                               static_cast<double>(pad ? w.length : w.inside);
        return product > 0 ? product : 1; // of no element
    }

    const PoolGeometry& g_;
    const std::array<std::vector<Window>, 3> axes_;
};

template <class Body>
void for_each_plane(const PoolGeometry& g, int threads, const Body& body) {
    const Index work = g.planes * (volume(g.input) + volume(g.output));
    Parallel::run(g.planes, worthwhile_threads(kMemoryBound * work, threads),
                  [&](Index plane, int) { body(plane); });
}

} // namespace

template <class T>
void avg_pool(const T* x, T* y, const PoolGeometry& g, int threads) {
    const AverageWindows windows(g);
    const Index in = volume(g.input), out = volume(g.output);
    for_each_plane(g, threads, [&](Index plane) {
        const T* from = x + plane * in;
        windows.for_each(
            [&](Index position, double divisor, const Window& d, const Window& h, const Window& w) {
                double total = 0; // a long running sum in float32 would lose digits
                windows.for_each_element(d, h, w, [&](Index i) { total += from[i]; });
                y[plane * out + position] = static_cast<T>(total / divisor);
            });
    });
}

template <class T>
void avg_pool_grad_input(const T* grad_y, T* grad_x, const PoolGeometry& g, int threads) {
    const AverageWindows windows(g);
    const Index in = volume(g.input), out = volume(g.output);
    for_each_plane(g, threads, [&](Index plane) {
        T* to = grad_x + plane * in;
        std::fill_n(to, in, T{});
        windows.for_each(
            [&](Index position, double divisor, const Window& d, const Window& h, const Window& w) {
                const T share = grad_y[plane * out + position] / static_cast<T>(divisor);
                windows.for_each_element(d, h, w, [&](Index i) { to[i] += share; });
            });
    });
}

#define INSTANTIATE(T)                                              \
    template void avg_pool(const T*, T*, const PoolGeometry&, int); \
    template void avg_pool_grad_input(const T*, T*, const PoolGeometry&, int);
FASTCONV_MEAN_TYPES(INSTANTIATE)

} // namespace fastconv

#include "gather.h"

#include <map>

#include "activation.h"
#include "algorithms.h"
#include "kernels.h"
#include "parallel.h"

namespace fastconv {
namespace {

GatherAxis forward_axis(const ConvGeometry& g, int axis) {
    GatherAxis a{g.output[axis], g.input[axis], g.stride[axis], 0, 1, {}};
    a.taps.reserve(static_cast<std::size_t>(g.kernel[axis]));
    for (Index t = 0; t < g.kernel[axis]; ++t)
        a.taps.push_back({t, t * g.dilation[axis] - g.pad_low[axis]});
    return a;
}

// Input i takes part in output o through tap t where o*stride = i + pad - t*dilation. For i = start +
// j*stride this is o = (start + pad - t*dilation)/stride + j, for those taps that divide.
std::vector<GatherAxis> grad_input_axes(const ConvGeometry& g, int axis) {
    const Index stride = g.stride[axis], size = g.input[axis];
    std::map<Index, std::vector<Index>> taps_of_phase;
    for (Index t = 0; t < g.kernel[axis]; ++t)
        taps_of_phase[t * g.dilation[axis] % stride].push_back(t);
    std::vector<GatherAxis> axes;
    for (const auto& [phase, taps] : taps_of_phase) {
        const Index behind = (phase - g.pad_low[axis]) % stride;
        const Index start = behind < 0 ? behind + stride : behind;
        if (start >= size)
            continue;
        GatherAxis a{ceil_div(size - start, stride), g.output[axis], 1, start, stride, {}};
        for (const Index t : taps)
            a.taps.push_back({t, (start + g.pad_low[axis] - t * g.dilation[axis]) / stride});
        axes.push_back(std::move(a));
    }
    return axes;
}

Index covered(const std::vector<GatherAxis>& axes) {
    Index total = 0;
    for (const GatherAxis& a : axes)
        total += a.outputs;
    return total;
}

// A 1x1 convolution knows no rows: one long axis makes the longest runs.
ConvGeometry with_merged_axes(ConvGeometry g) {
    if (g.is_pointwise()) {
        g.input = g.output = {1, 1, volume(g.input)};
    }
    return g;
}

} // namespace

template <class T>
GatherProblem<T> forward_problem(const ConvGeometry& geometry, const T* x, const T* weight, const T* bias,
                                 Activation activation, T* y) {
    const ConvGeometry g = with_merged_axes(geometry);
    const Index taps = volume(g.kernel);
    const Index inputs = g.group_inputs(), outputs = g.group_outputs();
    std::vector<GatherPlan> plans; // not from a list in braces, which would copy the plan
    plans.push_back({{forward_axis(g, 0), forward_axis(g, 1), forward_axis(g, 2)}});
    return {g.batch,
            g.groups,
            inputs,
            outputs,
            g.input,
            g.output,
            g.kernel,
            x,
            y,
            weight,
            outputs * inputs * taps,
            taps,
            inputs * taps,
            bias,
            activation,
            std::move(plans),
            true};
}

template <class T>
GatherProblem<T> grad_input_problem(const ConvGeometry& geometry, const T* grad_y, const T* weight,
                                    const T* bias, Activation activation, T* grad_x) {
    const ConvGeometry g = with_merged_axes(geometry);
    const Index taps = volume(g.kernel);
    const Index inputs = g.group_inputs(), outputs = g.group_outputs();
    const auto d_axes = grad_input_axes(g, 0), h_axes = grad_input_axes(g, 1), w_axes = grad_input_axes(g, 2);
    std::vector<GatherPlan> plans;
    for (const GatherAxis& d : d_axes)
        for (const GatherAxis& h : h_axes)
            for (const GatherAxis& w : w_axes)
                plans.push_back({{d, h, w}});
    const bool complete =
        covered(d_axes) == g.input[0] && covered(h_axes) == g.input[1] && covered(w_axes) == g.input[2];
    return {g.batch,
            g.groups,
            outputs,
            inputs,
            g.output,
            g.input,
            g.kernel,
            grad_y,
            grad_x,
            weight,
            outputs * inputs * taps,
            inputs * taps,
            taps,
            bias,
            activation,
            std::move(plans),
            complete};
}

template <class T>
void fill_with_bias(const GatherProblem<T>& p, int threads) {
    const Index plane = volume(p.result_size), channels = p.groups * p.results;
    const int workers = worthwhile_threads(kMemoryBound * p.batch * channels * plane, threads);
    Parallel::run(p.batch * channels, workers, [&](Index task) {
        const T value = p.bias == nullptr ? T{} : p.bias[task % channels];
        std::fill_n(p.result + task * plane, plane, activated(value, p.activation));
    });
}

namespace {

template <class T>
bool gemm_applies(const GatherProblem<T>&) {
    return true;
}
template <class T>
bool run_gemm(const GatherProblem<T>& problem, int threads) {
    gather_gemm(problem, threads);
    return true;
}
template <class T>
bool run_window(const GatherProblem<T>& problem, int threads) {
    gather_window(problem, threads);
    return true;
}

constexpr const char* kWindowNeeds =
    "at most 64 channels in or out of each group, windows and strides of at most 64, "
    "and at most 4096 products in a sum";

template <class T>
bool depthwise_serves(const GatherProblem<T>& problem) {
    if constexpr (std::is_floating_point_v<T>)
        return depthwise_applies(problem);
    else
        return false;
}
template <class T>
bool run_depthwise(const GatherProblem<T>& problem, int threads) {
    if constexpr (std::is_floating_point_v<T>)
        depthwise(problem, threads);
    return true;
}

template <class T>
constexpr std::array<Method<GatherProblem<T>>, 4> kMethods{{
    {Algorithm::gemm, true, "nothing", gemm_applies<T>, gemm_estimate<T>, run_gemm<T>},
    {Algorithm::window, true, kWindowNeeds, window_applies<T>, window_estimate<T>, run_window<T>},
    {Algorithm::depthwise, true, kDepthwiseNeeds, depthwise_serves<T>, depthwise_estimate<T>,
     run_depthwise<T>},
    {Algorithm::winograd, false, kWinogradNeeds, winograd_applies<T>, winograd_estimate<T>, winograd<T>},
}};

} // namespace

template <class T>
void gather(const GatherProblem<T>& problem, const Settings& settings) {
    const auto& chosen = choose(kMethods<T>, problem, settings);
    if (!problem.complete)
        fill_with_bias(problem, settings.threads);
    if (problem.kept == nullptr) {
        run(chosen, kMethods<T>, problem, settings);
    } else if (!chosen.run(problem, settings.threads)) {
        GatherProblem<T> other = problem;
        other.kept = nullptr; // what is kept is for the algorithm that gave up
        gather(other, {Algorithm::direct, settings.threads, settings.workspace_limit});
    }
}

template <class T>
Choice explain_gather(const GatherProblem<T>& problem, const Settings& settings) {
    return explain(kMethods<T>, problem, settings);
}

template <class T>
void conv_forward(const T* x, const T* weight, const T* bias, Activation activation, T* y,
                  const ConvGeometry& g, const Settings& settings) {
    gather(forward_problem(g, x, weight, bias, activation, y), settings);
}

template <class T>
void conv_grad_input(const T* grad_y, const T* weight, const T* bias, Activation activation, T* grad_x,
                     const ConvGeometry& g, const Settings& settings) {
    gather(grad_input_problem(g, grad_y, weight, bias, activation, grad_x), settings);
}

template <class T>
Choice explain_conv_forward(const ConvGeometry& g, const Settings& settings) {
    return explain_gather(forward_problem<T>(g, nullptr, nullptr, nullptr, Activation::none, nullptr),
                          settings);
}

template <class T>
Choice explain_conv_grad_input(const ConvGeometry& g, const Settings& settings) {
    return explain_gather(grad_input_problem<T>(g, nullptr, nullptr, nullptr, Activation::none, nullptr),
                          settings);
}

#define INSTANTIATE(T)                                                                                       \
    template GatherProblem<T> forward_problem(const ConvGeometry&, const T*, const T*, const T*, Activation, \
                                              T*);                                                           \
    template GatherProblem<T> grad_input_problem(const ConvGeometry&, const T*, const T*, const T*,          \
                                                 Activation, T*);                                            \
    template void gather(const GatherProblem<T>&, const Settings&);                                          \
    template Choice explain_gather(const GatherProblem<T>&, const Settings&);                                \
    template void conv_forward(const T*, const T*, const T*, Activation, T*, const ConvGeometry&,            \
                               const Settings&);                                                             \
    template void conv_grad_input(const T*, const T*, const T*, Activation, T*, const ConvGeometry&,         \
                                  const Settings&);                                                          \
    template Choice explain_conv_forward<T>(const ConvGeometry&, const Settings&);                           \
    template Choice explain_conv_grad_input<T>(const ConvGeometry&, const Settings&);
FASTCONV_CONV_TYPES(INSTANTIATE)

} // namespace fastconv

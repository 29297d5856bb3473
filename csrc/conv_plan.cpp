#include "conv_plan.h"

#include "algorithms.h"

namespace fastconv {
namespace {

template <class T>
std::vector<T> copied(const T* from, Index count) {
    return from == nullptr ? std::vector<T>{} : std::vector<T>(from, from + count);
}

} // namespace

template <class T>
ConvPlan<T>::ConvPlan(bool forward, const T* weight, const T* bias, Activation activation,
                      const ConvGeometry& g, const Settings& settings)
    : geometry_(g), forward_(forward), tiles_(&tile_set()),
      weight_(copied(weight, g.out_channels * g.group_inputs() * volume(g.kernel))),
      bias_(copied(bias, forward ? g.out_channels : g.in_channels)),
      problem_(
          (forward ? forward_problem<T> : grad_input_problem<T>)(g, nullptr, weight_.data(),
                                                                 bias == nullptr ? nullptr : bias_.data(),
                                                                 activation, nullptr)) {
    problem_.kept = &kept_;
    algorithm_ = explain_gather(problem_, settings).algorithm;
    const Index sources = problem_.batch * g.groups * problem_.sources * volume(problem_.source_size);
    const Index results = problem_.batch * g.groups * problem_.results * volume(problem_.result_size);
    const Loan source(static_cast<std::size_t>(sources) * sizeof(T));
    const Loan result(static_cast<std::size_t>(results) * sizeof(T));
    T* const zeros = static_cast<T*>(source.memory.data());
    std::fill_n(zeros, sources, T{});
    run(zeros, static_cast<T*>(result.memory.data()), settings.threads);
    kept_.complete = true;
}

template <class T>
void ConvPlan<T>::run(const T* source, T* result, int threads) const {
    if (tiles_ != &tile_set())
        throw std::logic_error(std::string("the plan was made for instruction set ") + tiles_->name +
                               ", selected is " + tile_set().name);
    GatherProblem<T> problem = problem_;
    problem.source = source;
    problem.result = result;
    gather(problem, {algorithm_, threads, kNoLimit});
}

template <class T>
std::size_t ConvPlan<T>::bytes() const {
    return kept_.memory.size() + (weight_.size() + bias_.size()) * sizeof(T);
}

#define INSTANTIATE(T) template class ConvPlan<T>;
FASTCONV_CONV_TYPES(INSTANTIATE)

} // namespace fastconv

// Which algorithm serves a convolution. A direction has a table of methods; a closed-form model
// (cost_model.h) says what each would take, and the quickest that the caller's settings allow is run. What
// runs and what `explain` tells come from the same `choose`.
#pragma once

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "cost_model.h"
#include "kernels.h"

namespace fastconv {

// An algorithm for one direction of a convolution.
template <class Problem>
struct Method {
    Algorithm algorithm;
    bool direct;       // sums the products of the definition
    const char* needs; // of the problems that it can serve
    bool (*applies)(const Problem&);
    Estimate (*estimate)(const Problem&, int threads); // where it applies
    // False where a result would not be finite that one of direct summation may be: another has to compute
    // it.
    bool (*run)(const Problem&, int threads);
};

// Every algorithm that could compute a problem would take more memory than the caller allows.
class WorkspaceError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

inline std::string name_of(Algorithm algorithm) {
    return std::string("'") + kAlgorithmNames[static_cast<int>(algorithm)] + "'";
}

// Where the caller sets no limit, for an algorithm that buys time with memory and was not asked for by name.
constexpr double kMostForSpeed = 256 << 20;

// Without a limit the number of threads does not decide: results would depend on it.
template <class Problem>
bool fits(const Method<Problem>& method, const Problem& problem, const Estimate& estimate,
          const Settings& settings) {
    if (settings.workspace_limit != kNoLimit)
        return estimate.workspace <= static_cast<double>(settings.workspace_limit);
    return method.direct || settings.algorithm == method.algorithm ||
           method.estimate(problem, 1).workspace <= kMostForSpeed;
}

// The quickest by the model of those that serve the problem, fit the limit and are what is asked for.
template <class Problem, std::size_t N>
const Method<Problem>& choose(const std::array<Method<Problem>, N>& methods, const Problem& problem,
                              const Settings& settings) {
    const Method<Problem>* best = nullptr;
    double best_time = 0;
    std::string too_large;
    for (const Method<Problem>& method : methods) {
        const bool named = settings.algorithm == method.algorithm;
        if (!named && settings.algorithm != Algorithm::automatic &&
            !(settings.algorithm == Algorithm::direct && method.direct))
            continue;
        if (!method.applies(problem)) {
            if (named)
                throw std::invalid_argument("algorithm " + name_of(method.algorithm) + " needs " +
                                            method.needs);
            continue;
        }
        const Estimate estimate = method.estimate(problem, settings.threads);
        if (!fits(method, problem, estimate, settings))
            too_large += (too_large.empty() ? "" : ", ") + name_of(method.algorithm) + " " +
                         std::to_string(static_cast<Index>(estimate.workspace));
        else if (best == nullptr || estimate.time < best_time) {
            best = &method;
            best_time = estimate.time;
        }
    }
    if (best == nullptr)
        throw WorkspaceError("workspace_limit is " + std::to_string(settings.workspace_limit) +
                             " bytes, the algorithms that serve this call need: " + too_large);
    return *best;
}

// Computes the problem by the method chosen, and where that gives up, by the best of direct summation.
template <class Problem, std::size_t N>
void run(const Method<Problem>& chosen, const std::array<Method<Problem>, N>& methods, const Problem& problem,
         const Settings& settings) {
    if (chosen.run(problem, settings.threads))
        return;
    const Settings direct{Algorithm::direct, settings.threads, settings.workspace_limit};
    choose(methods, problem, direct).run(problem, settings.threads);
}

// What `choose` takes and what it takes it from: every method that serves the problem.
struct Candidate {
    Algorithm algorithm;
    Estimate estimate;
    bool fits;
};
struct Choice {
    Algorithm algorithm;
    std::vector<Candidate> candidates;
};

template <class Problem, std::size_t N>
Choice explain(const std::array<Method<Problem>, N>& methods, const Problem& problem,
               const Settings& settings) {
    Choice choice{choose(methods, problem, settings).algorithm, {}};
    for (const Method<Problem>& method : methods)
        if (method.applies(problem)) {
            const Estimate estimate = method.estimate(problem, settings.threads);
            choice.candidates.push_back(
                {method.algorithm, estimate, fits(method, problem, estimate, settings)});
        }
    return choice;
}

template <class T>
Choice explain_gather(const GatherProblem<T>& problem, const Settings& settings);

// The same for each kernel of kernels.h, of which only the geometry is needed.
template <class T>
Choice explain_conv_forward(const ConvGeometry& geometry, const Settings& settings);
template <class T>
Choice explain_conv_grad_input(const ConvGeometry& geometry, const Settings& settings);
template <class T>
Choice explain_conv_grad_weight(const ConvGeometry& geometry, const Settings& settings);

// What these need, in every direction.
constexpr const char* kDepthwiseNeeds = "floating-point numbers, one input channel in each group, results of "
                                        "at least two rows, and a stride along them of at most 2";
constexpr const char* kWinogradNeeds =
    "floating-point numbers, a kernel of at least 2x2 without stride, where it is dilated of a single slice "
    "with "
    "paddings that are multiples of the dilation, and at least 16 channels in and out of each group";

} // namespace fastconv

// What the algorithms of convolution take, told from the shape alone. The times were fitted to measurements
// on few machines: they only have to rank algorithms, and those who want to know measure
// (config_context(algorithm="tune")).
#pragma once

#include "gather.h"

namespace fastconv {

struct Estimate {
    double time;            // in multiply-adds of a large matrix product that take as long
    double multiplications; // of the algorithm's sums; transforms and idle lanes not counted
    double workspace;       // bytes of temporary memory of all threads
    int threads;            // at most so many are started
};

// Of a forward convolution or an input gradient.
template <class T>
Estimate gemm_estimate(const GatherProblem<T>& problem, int threads);
template <class T>
Estimate window_estimate(const GatherProblem<T>& problem, int threads);
template <class T>
Estimate winograd_estimate(const GatherProblem<T>& problem, int threads);

// Also of a weight gradient, whose problem is the forward one.
template <class T>
Estimate depthwise_estimate(const GatherProblem<T>& problem, int threads);

// Of a weight gradient; `forward` is the forward problem, with grad_y in place of its results.
template <class T>
Estimate outer_products_estimate(const GatherProblem<T>& forward, double workspace, int threads);
template <class T>
Estimate window_grad_weight_estimate(const GatherProblem<T>& forward, int threads);
template <class T>
Estimate winograd_grad_weight_estimate(const GatherProblem<T>& forward, int threads);

} // namespace fastconv

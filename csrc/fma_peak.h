// What the processor's multiply-adds alone can reach: the ceiling of the kernels, for benchmarks.
#pragma once

namespace fastconv {

// Floating-point operations per second, two for each multiply-add, of the selected instruction set on
// `threads` threads: the best of several runs, some 50 milliseconds in all. T is float or double.
template <class T>
double fma_peak(int threads);

} // namespace fastconv

// A dilated convolution is several dense ones: every d-th row and column of an image makes an image of its
// own, a phase, in which the taps of the window are neighbours.
#pragma once

#include "gather.h"

namespace fastconv {

// How far apart neighbouring taps read.
inline Index tap_distance(const GatherAxis& axis) {
    return axis.taps.size() < 2 ? 1 : std::abs(axis.taps[1].offset - axis.taps[0].offset);
}

template <class T>
bool is_dilated(const GatherProblem<T>& p) {
    return tap_distance(p.plans.front().axes[1]) > 1 || tap_distance(p.plans.front().axes[2]) > 1;
}

// The same convolution of all phases of the images, with sizes rounded up: what is too much reads zeros, or
// is not used. The offsets must divide by the distance of the taps. Sources and results are still to be set.
template <class T>
GatherProblem<T> problem_of_phases(const GatherProblem<T>& problem);

// phases[n][row phase][column phase][channel][rows / distance][columns / distance] of images [n][channel]
// [rows][columns], for `size` = {1, rows, columns}; zeros where there is no such element. And the reverse.
template <class T>
void split_phases(const T* images, Index batch, Index channels, const Size3& size, const GatherPlan& plan,
                  T* phases, int threads);
template <class T>
void join_phases(const T* phases, Index batch, Index channels, const Size3& size, const GatherPlan& plan,
                 T* images, int threads);

// The same with sources of its own, which are split from the problem's, and results of its own, which are
// split as well or still to be computed: both in workspaces of the calling thread.
template <class T>
GatherProblem<T> problem_in_phases(const GatherProblem<T>& problem, bool with_results, int threads);

// The elements that a 1x1 convolution with these strides reads: planes of `output` from planes of `size`.
template <class T>
void take_strided(const T* planes, Index count, const Size3& size, const Size3& stride, const Size3& output,
                  T* taken, int threads);

} // namespace fastconv

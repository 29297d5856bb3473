// What the depthwise algorithms share: the windows of a layer, as depthwise_tiles.h describes them.
#pragma once

#include <array>
#include <cstdlib>
#include <vector>

#include "gather.h"

namespace fastconv {

template <class T>
const DepthwiseTiles<T>& depthwise_tiles();
template <>
inline const DepthwiseTiles<float>& depthwise_tiles() {
    return tile_set().depthwise_f32;
}
template <>
inline const DepthwiseTiles<double>& depthwise_tiles() {
    return tile_set().depthwise_f64;
}

class DepthwiseLayer {
public:
    // Rows first, first + step, ... of a slice of results, of which neighbours share source rows.
    struct Rows {
        Index first, step, count;
        std::array<DepthwiseWindows, 2> windows;
    };

    // Whether the tiles know such windows.
    template <class T>
    static bool suits(const GatherProblem<T>& p) {
        if (!p.complete || p.plans.size() > kMostPlans || p.result_size[1] < kFewestRows)
            return false;
        const std::vector<const GatherAxis*> across = axes(p.plans, 2);
        const GatherAxis& w = *across.front();
        if (across.size() == 1 ? w.step > 2 : w.out_step != 2)
            return false;
        return std::all_of(p.plans.begin(), p.plans.end(), [](const GatherPlan& plan) {
            return plan.taps() <= kLongestSum &&
                   std::all_of(plan.axes.begin(), plan.axes.end(), [](const GatherAxis& a) {
                       return a.step <= kFarthest && std::abs(a.taps.front().offset) <= kFarthest &&
                              std::abs(a.taps.back().offset) <= kFarthest;
                   });
        });
    }

    template <class T>
    explicit DepthwiseLayer(const GatherProblem<T>& p)
        : DepthwiseLayer(p.plans, p.source_size, p.result_size, p.kernel,
                         {tiles<T>().lanes, p.groups > 1 && p.results == 1 && p.result_size[0] == 1,
                          depthwise_tiles<T>().tap_columns, depthwise_tiles<T>().results}) {}

    DepthwiseKind kind() const { return kind_; }

    // Whether two channels share a vector.
    bool pairs() const { return kind_ >= DepthwiseKind::step_one_pairs; }

    // By slice of the results.
    const std::vector<std::vector<Rows>>& slices() const { return slices_; }

private:
    static constexpr std::size_t kMostPlans = 64;
    static constexpr Index kFewestRows = 2;     // one row has no neighbours
    static constexpr Index kLongestSum = 256;   // of products, lest rounding adds up
    static constexpr Index kFarthest = 1 << 20; // an offset or a step: addresses do not overflow

    // Of the tiles in use, by kind; and whether a call has several channels.
    struct Extents {
        int lanes;
        bool channels;
        const int *tap_columns, *results;
    };

    DepthwiseLayer(const std::vector<GatherPlan>& plans, const Size3& source_size, const Size3& result_size,
                   const Size3& kernel, const Extents& extents);

    static DepthwiseKind kind_of(const std::vector<GatherPlan>& plans, const Extents& extents);

    // The plans are all combinations of these axes of one dimension.
    static std::vector<const GatherAxis*> axes(const std::vector<GatherPlan>& plans, std::size_t dimension);

    // What a vector of results on the axis w reads through the tap columns from `first` on, in row 0 and
    // slice 0.
    DepthwisePiece piece(const GatherTap& first, Index tap_columns, const GatherAxis& w, Index vector) const;

    // The windows of one slice of the results in as many vectors.
    DepthwiseWindows windows(const GatherAxis& d, const GatherAxis& h, const GatherAxis& w, Index slice,
                             Index vectors);

    const Size3 source_size_, kernel_;
    const DepthwiseKind kind_;
    const int lanes_;                 // of a row in a vector
    const int tap_columns_, results_; // at most in a block of taps; of a vector, see DepthwiseTiles
    std::vector<std::vector<Rows>> slices_;
    std::vector<std::vector<DepthwisePiece>> pieces_;
    std::vector<std::vector<int>> ends_;
};

} // namespace fastconv

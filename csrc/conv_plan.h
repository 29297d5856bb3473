// A forward convolution or input gradient for many calls with the same weights: what the algorithm makes of
// them is made once.
#pragma once

#include <vector>

#include "gather.h"

namespace fastconv {

template <class T>
class ConvPlan {
public:
    // Copies weight and bias, which may be null, chooses the algorithm, and runs it once on zeros: that
    // leaves the weights as it wants them, and the workspaces of the threads as large as it needs them.
    ConvPlan(bool forward, const T* weight, const T* bias, Activation activation,
             const ConvGeometry& geometry, const Settings& settings);
    ConvPlan(const ConvPlan&) = delete;
    ConvPlan& operator=(const ConvPlan&) = delete;

    // Any number of threads may call at once. Throws std::logic_error where tiles of another instruction set
    // were selected meanwhile: what is kept is made for those of the plan.
    void run(const T* source, T* result, int threads) const;

    const ConvGeometry& geometry() const { return geometry_; }
    bool forward() const { return forward_; }
    Algorithm algorithm() const { return algorithm_; }
    std::size_t bytes() const; // that are kept

private:
    const ConvGeometry geometry_;
    const bool forward_;
    const TileSet* const tiles_;
    const std::vector<T> weight_, bias_;
    KeptWeights kept_;
    GatherProblem<T> problem_; // without source and result
    Algorithm algorithm_;
};

} // namespace fastconv

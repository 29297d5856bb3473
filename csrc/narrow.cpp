#include "narrow.h"

#include "gather.h"
#include "parallel.h"

namespace fastconv {
namespace {

constexpr Index kPartBytes = 4 << 20; // of float32 copies of some images and their results
constexpr Index kConvertedPerTask = 1 << 15;

const NarrowTiles& tiles_of(NarrowType type) {
    return type == NarrowType::float16 ? tile_set().float16 : tile_set().bfloat16;
}

// Calls convert(begin, count) for pieces of [0, count).
template <class Convert>
void for_each_piece(Index count, int threads, const Convert& convert) {
    Parallel::run(ceil_div(count, kConvertedPerTask), worthwhile_threads(kMemoryBound * count, threads),
                  [&](Index task) {
                      const Index begin = task * kConvertedPerTask;
                      convert(begin, std::min(kConvertedPerTask, count - begin));
                  });
}

// How a batch is cut into parts of almost the same number of images.
struct Parts {
    explicit Parts(const ConvGeometry& geometry)
        : g(geometry), x_image(g.in_channels * volume(g.input)), y_image(g.out_channels * volume(g.output)),
          weights(g.out_channels * g.group_inputs() * volume(g.kernel)) {
        const Index image = (x_image + y_image) * static_cast<Index>(sizeof(float));
        count = ceil_div(g.batch, std::clamp<Index>(kPartBytes / image, 1, g.batch));
        images = ceil_div(g.batch, count);
        count = ceil_div(g.batch, images);
    }

    Range images_of(Index part) const { return {part * images, std::min(g.batch, (part + 1) * images)}; }

    ConvGeometry geometry_of(const Range& some) const {
        ConvGeometry part = g;
        part.batch = some.size();
        return part;
    }

    // Bytes of the float32 copies.
    Index bytes() const {
        const Index channels = std::max(g.in_channels, g.out_channels); // of a bias
        return (images * (x_image + y_image) + 2 * weights + channels) * static_cast<Index>(sizeof(float));
    }

    // What is left of the limit of workspace for the algorithm.
    Settings settings_within(const Settings& settings) const {
        Settings rest = settings;
        if (settings.workspace_limit != kNoLimit) {
            rest.workspace_limit -= bytes();
            if (rest.workspace_limit < 0)
                throw WorkspaceError("workspace_limit is " + std::to_string(settings.workspace_limit) +
                                     " bytes, converting numbers of 16 bits takes " +
                                     std::to_string(bytes()));
        }
        return rest;
    }

    const ConvGeometry& g;
    const Index x_image, y_image, weights; // elements
    Index count, images;
};

void gather_narrow(NarrowType type, bool forward, const Narrow* source, const Narrow* weight,
                   const Narrow* bias, Activation activation, Narrow* result, const ConvGeometry& g,
                   const Settings& settings) {
    const Parts parts(g);
    Settings rest = parts.settings_within(settings);
    const int threads = settings.threads;
    const Index source_image = forward ? parts.x_image : parts.y_image;
    const Index result_image = forward ? parts.y_image : parts.x_image;
    const Index channels = forward ? g.out_channels : g.in_channels;
    float* wide_weight = workspace<float>(Slot::wide_weights, parts.weights + channels);
    float* wide_bias = bias == nullptr ? nullptr : wide_weight + parts.weights;
    float* wide_source = workspace<float>(Slot::wide_source, parts.images * source_image);
    float* wide_result = workspace<float>(Slot::wide_result, parts.images * result_image);
    widen(type, weight, parts.weights, wide_weight, threads);
    if (bias != nullptr)
        widen(type, bias, channels, wide_bias, threads);
    KeptWeights kept;
    for (Index i = 0; i < parts.count; ++i) {
        const Range images = parts.images_of(i);
        const ConvGeometry part = parts.geometry_of(images);
        GatherProblem<float> problem =
            (forward ? forward_problem<float> : grad_input_problem<float>)(part, wide_source, wide_weight,
                                                                           wide_bias, activation,
                                                                           wide_result);
        if (i == 0)
            rest.algorithm = explain_gather(problem, rest).algorithm; // of all parts
        if (parts.count > 1 && images.size() == parts.images)
            problem.kept = &kept;
        widen(type, source + images.begin * source_image, images.size() * source_image, wide_source, threads);
        gather(problem, rest);
        kept.complete = problem.kept != nullptr;
        round_to(type, wide_result, images.size() * result_image, result + images.begin * result_image,
                 threads);
    }
}

} // namespace

void widen(NarrowType type, const Narrow* from, Index count, float* to, int threads) {
    const NarrowTiles& tile = tiles_of(type);
    for_each_piece(count, threads,
                   [&](Index begin, Index some) { tile.widen(from + begin, some, to + begin); });
}

void round_to(NarrowType type, const float* from, Index count, Narrow* to, int threads) {
    const NarrowTiles& tile = tiles_of(type);
    for_each_piece(count, threads,
                   [&](Index begin, Index some) { tile.round(from + begin, some, to + begin); });
}

void narrow_conv_forward(NarrowType type, const Narrow* x, const Narrow* weight, const Narrow* bias,
                         Activation activation, Narrow* y, const ConvGeometry& g, const Settings& settings) {
    gather_narrow(type, true, x, weight, bias, activation, y, g, settings);
}

void narrow_conv_grad_input(NarrowType type, const Narrow* grad_y, const Narrow* weight, const Narrow* bias,
                            Activation activation, Narrow* grad_x, const ConvGeometry& g,
                            const Settings& settings) {
    gather_narrow(type, false, grad_y, weight, bias, activation, grad_x, g, settings);
}

void narrow_conv_grad_weight(NarrowType type, const Narrow* x, const Narrow* grad_y, Narrow* grad_weight,
                             const ConvGeometry& g, const Settings& settings) {
    const Parts parts(g);
    const Settings rest = parts.settings_within(settings);
    float* sums = workspace<float>(Slot::wide_weights, 2 * parts.weights);
    float* wide_x = workspace<float>(Slot::wide_source, parts.images * parts.x_image);
    float* wide_grad_y = workspace<float>(Slot::wide_result, parts.images * parts.y_image);
    for (Index i = 0; i < parts.count; ++i) {
        const Range images = parts.images_of(i);
        widen(type, x + images.begin * parts.x_image, images.size() * parts.x_image, wide_x, rest.threads);
        widen(type, grad_y + images.begin * parts.y_image, images.size() * parts.y_image, wide_grad_y,
              rest.threads);
        float* part = i == 0 ? sums : sums + parts.weights;
        conv_grad_weight(wide_x, wide_grad_y, part, parts.geometry_of(images), rest);
        if (i > 0)
            for_each_piece(parts.weights, rest.threads, [&](Index begin, Index some) {
                for (Index j = begin; j < begin + some; ++j)
                    sums[j] += part[j];
            });
    }
    round_to(type, sums, parts.weights, grad_weight, rest.threads);
}

Choice explain_narrow(ExplainConv explain, const ConvGeometry& g, const Settings& settings) {
    const Parts parts(g);
    Choice choice = explain(parts.geometry_of({0, parts.images}), parts.settings_within(settings));
    for (Candidate& candidate : choice.candidates) {
        candidate.estimate.time *= static_cast<double>(parts.count);
        candidate.estimate.multiplications *= static_cast<double>(parts.count);
        candidate.estimate.workspace += static_cast<double>(parts.bytes());
    }
    return choice;
}

} // namespace fastconv

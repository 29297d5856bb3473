// Convolution as an implicit matrix product: results[m, pixel] = sum over (channel, tap) of A[m, .] * B[.,
// pixel].
//
// A, the weights, is packed once into blocks of Tiles::rows result channels. B is never formed as a whole:
// each task packs the few panels of Tiles::columns pixels it works on, a chunk of channels at a time, so that
// they stay in the second-level cache (unless the kernel is huge), and runs all its blocks of A over them.
// Sums over chunks (kDepthOfChunk rows of a panel, but at least one channel with all its taps) are combined
// in the order of channels, which depends on the shape only: in the result itself, or beside it where that is
// scattered.
#include <cstring>
#include <numeric>

#include "activation.h"
#include "gather.h"
#include "kernels.h"
#include "parallel.h"

namespace fastconv {
namespace {

// Blocks and sources whose weights a task packs: where a result's weights lie together, long runs of a few
// results; where a source's do (the input gradient), whole pages of a few sources.
constexpr Index kBlocksOfLongRuns = 2;
constexpr Index kSourcesPerPacking = 32, kBlocksPerPacking = 16;
constexpr Index kSourcesAhead = 8, kLine = 64;
constexpr Index kFewPanels = 12, kFewestBlocks = 8; // for each thread
constexpr Index kMostUnitsPerTask = 8;
constexpr Index kFarthest = 1024; // stride of windows that are turned

// A run of pixels of one panel, neighbours in a row of one image.
struct Run {
    Piece piece;
    Index source; // of its image's group
    Index d, h, w;
};

// Copies rows of `count` elements, filled up with zeros to `width`.
template <class T>
void copy_rows(const T* src, Index src_stride, Index count, T* dst, Index dst_stride, Index width,
               Index rows) {
    const Tiles<T>& tile = tiles<T>();
    for (Index j = 0; j < width; j += tile.lanes)
        tile.pack_run(src + j, src_stride, 1, dst + j, dst_stride, rows, 0,
                      static_cast<int>(std::clamp<Index>(count - j, 0, tile.lanes)),
                      static_cast<int>(std::min<Index>(width - j, tile.lanes)), kSourcesAhead * src_stride);
}

// Some of the kernel positions of turned weights.
template <class T>
void pick_taps(const T* turned, Index all_taps, const std::vector<Index>& taps, Index width, Index sources,
               T* out) {
    const Index stride = static_cast<Index>(taps.size()) * width;
    for (const Index tap : taps) {
        copy_rows(turned + std::max<Index>(tap, 0) * width, all_taps * width, tap < 0 ? 0 : width, out,
                  stride, width, sources);
        out += width;
    }
}

// Calls use(turned, first, count) for some sources after the others, with their weights for all kernel
// positions: turned[(source, position)][width].
template <class T, class Use>
void turn_weights(const GatherProblem<T>& p, Index group, Index first, Index width, const Range& sources,
                  const Use& use) {
    const Tiles<T>& tile = tiles<T>();
    const Index rows = std::min(width, p.results - first), all_taps = volume(p.kernel);
    const Index most = std::max<Index>(1, kElementsTurned / all_taps);
    // Weights of neighbouring results that lie together: what is turned next is fetched meanwhile.
    const Index together = p.result_stride == all_taps ? rows * all_taps * static_cast<Index>(sizeof(T)) : 0;
    T* turned = workspace<T>(Slot::staging, most * all_taps * width);
    for (Index c = sources.begin; c < sources.end; c += most) {
        const Index count = std::min(most, sources.end - c);
        for (Index i = 0; i < count; ++i) {
            const T* weight =
                p.weight + group * p.group_stride + first * p.result_stride + (c + i) * p.source_stride;
            const char* ahead = reinterpret_cast<const char*>(weight + kSourcesAhead * p.source_stride);
            for (Index line = 0; line < together; line += kLine)
                __builtin_prefetch(ahead + line);
            tile.transpose(weight, p.result_stride, rows, all_taps, turned + i * all_taps * width, width,
                           width);
        }
        use(turned, c, count);
    }
}

// One plan's share of the packed weights and of the tasks.
struct PlanLayout {
    const GatherPlan* plan;
    std::vector<Index> taps;              // kernel positions in the order of the panel's rows
    Index weights;                        // offset of its packed weights
    Index panels, panels_per_unit, units; // of a group; the panels of a unit share a pass over the weights
    Index units_per_task, row_splits;
    Index first_task, tasks;
    Index chunk; // channels
};

template <class T>
class GatherGemm {
public:
    GatherGemm(const GatherProblem<T>& problem, int threads)
        : p_(problem), tile_(tiles<T>()), blocks_(ceil_div(problem.results, tile_.rows)), threads_(threads),
          by_result_(problem.result_stride > problem.source_stride),
          blocks_per_packing_(by_result_ ? kBlocksOfLongRuns : kBlocksPerPacking),
          sources_per_packing_(by_result_ ? problem.sources : kSourcesPerPacking) {
        Index work = 0, weights = 0, panel_elements = 0, tasks = 0;
        for (const GatherPlan& plan : p_.plans)
            work += plan.outputs() * plan.taps();
        work *= p_.batch * p_.groups * p_.sources * p_.results;
        threads_ = worthwhile_threads(work, threads);
        for (const GatherPlan& plan : p_.plans) {
            PlanLayout layout = layout_of(plan);
            layout.weights = weights;
            layout.first_task = tasks;
            weights += p_.groups * blocks_ * p_.sources * plan.taps() * tile_.rows;
            panel_elements = std::max(panel_elements, layout.panels_per_unit * panel_size(layout));
            tasks += layout.tasks;
            layouts_.push_back(std::move(layout));
        }
        tasks_ = tasks;
        weights_ = weights_memory(p_, weights);
        panel_elements_ = panel_elements;
    }

    void run() const {
        const Index packings = p_.weights_are_kept() ? 0
                                                     : p_.groups * ceil_div(blocks_, blocks_per_packing_) *
                                                           ceil_div(p_.sources, sources_per_packing_);
        Parallel::run(packings, threads_, [this](Index task) { pack_weights(task); });
        Parallel::run(tasks_, threads_, [this](Index task) {
            const auto after =
                std::upper_bound(layouts_.begin(), layouts_.end(), task,
                                 [](Index t, const PlanLayout& l) { return t < l.first_task; });
            const PlanLayout& layout = *(after - 1);
            run_task(layout, task - layout.first_task);
        });
    }

private:
    PlanLayout layout_of(const GatherPlan& plan) const {
        PlanLayout l{};
        l.plan = &plan;
        l.taps = plan.kernel_positions(p_.kernel);
        const Index longest = std::max<Index>(1, kDepthOfChunk / plan.taps());
        l.chunk = ceil_div(p_.sources, ceil_div(p_.sources, longest));
        l.panels = ceil_div(p_.batch * plan.outputs(), tile_.columns);
        const Index all_panels = l.panels * p_.groups;
        if (all_panels < kFewPanels * threads_ && blocks_ >= kFewestBlocks * threads_) {
            // Too few panels to go round: threads share the weights, and read each but once or twice.
            l.panels_per_unit = ceil_div(
                l.panels, ceil_div(l.panels, shared_panels<T>(l.chunk * plan.taps(), p_.results, threads_)));
            l.units = ceil_div(l.panels, l.panels_per_unit);
            l.row_splits = threads_ / std::gcd(static_cast<Index>(threads_), l.units * p_.groups);
            l.units_per_task = 1;
        } else {
            // Several panels share one pass over the weights, but every thread should have work.
            const Index wanted = l.chunk * plan.taps() <= 600 ? 4 : 2;
            l.panels_per_unit = std::clamp<Index>(all_panels / (3 * threads_), 1, wanted);
            l.units = ceil_div(l.panels, l.panels_per_unit);
            const Index all = l.units * p_.groups;
            l.row_splits = all >= 3 * threads_ ? 1 : std::min<Index>(blocks_, threads_);
            l.units_per_task = std::clamp<Index>(all / (8 * threads_), 1, kMostUnitsPerTask);
        }
        l.tasks = p_.groups * ceil_div(l.units, l.units_per_task) * l.row_splits;
        return l;
    }

    Index panel_size(const PlanLayout& l) const { return l.chunk * l.plan->taps() * tile_.columns; }

    T* packed(const PlanLayout& l, Index group, Index block) const {
        return weights_ + l.weights + (group * blocks_ + block) * p_.sources * l.plan->taps() * tile_.rows;
    }

    // Packs some sources' weights for some blocks.
    void pack_weights(Index task) const {
        const Index block_parts = ceil_div(blocks_, blocks_per_packing_);
        const Index source_parts = ceil_div(p_.sources, sources_per_packing_);
        const Index group = task / (block_parts * source_parts);
        const Index first_block = task % block_parts * blocks_per_packing_;
        const Index first_source = task / block_parts % source_parts * sources_per_packing_;
        const Range sources{first_source, std::min(p_.sources, first_source + sources_per_packing_)};
        for (Index block = first_block; block < std::min(blocks_, first_block + blocks_per_packing_); ++block)
            if (layouts_.size() == 1)
                pack_weight_block(p_, layouts_[0].taps, group, block * tile_.rows, tile_.rows, sources,
                                  packed(layouts_[0], group, block) +
                                      sources.begin * layouts_[0].plan->taps() * tile_.rows);
            else
                deal_weights(group, block, sources);
    }

    // The same for several plans, between which the kernel positions are divided: each weight is read once.
    void deal_weights(Index group, Index block, const Range& sources) const {
        turn_weights(p_, group, block * tile_.rows, tile_.rows, sources,
                     [&](const T* turned, Index first, Index count) {
                         for (const PlanLayout& l : layouts_)
                             pick_taps<T>(turned, volume(p_.kernel), l.taps, tile_.rows, count,
                                          packed(l, group, block) + first * l.plan->taps() * tile_.rows);
                     });
    }

    // The pixels of some panels, and where their results belong.
    struct Unit {
        std::vector<std::vector<Run>> runs;
        std::vector<std::vector<Piece>> pieces;
        std::vector<std::vector<const T*>> direct; // vectors of a panel that need no packing, or none
    };

    Unit unit_of(const PlanLayout& l, Index group, Index i) const {
        Unit unit;
        const Index end = std::min(l.panels, (i + 1) * l.panels_per_unit);
        for (Index panel = i * l.panels_per_unit; panel < end; ++panel) {
            unit.runs.push_back(runs_of(*l.plan, group, panel));
            std::vector<Piece>& pieces = unit.pieces.emplace_back();
            for (const Run& run : unit.runs.back())
                pieces.push_back(run.piece);
            unit.direct.push_back(direct_vectors(l, unit.runs.back()));
        }
        return unit;
    }

    // Where a panel's rows are whole vectors of the source, the first block multiplies them from there, and
    // packs them for the others meanwhile.
    std::vector<const T*> direct_vectors(const PlanLayout& l, const std::vector<Run>& runs) const {
        const GatherAxis& w = l.plan->axes[2];
        std::vector<const T*> vectors;
        if (l.plan->taps() > 1 || w.step > 1 || p_.results <= tile_.rows / 2)
            return vectors;
        vectors.reserve(runs.size());
        for (const Run& run : runs) {
            const Index place = place_of(*l.plan, run);
            const Index start = run.w + w.taps[0].offset;
            if (place < 0 || run.piece.count < tile_.lanes || start < 0 ||
                start + tile_.lanes > w.source_size)
                return {};
            vectors.push_back(p_.source + run.source + place);
        }
        return static_cast<int>(vectors.size()) * tile_.lanes == tile_.columns ? vectors
                                                                               : std::vector<const T*>();
    }

    // Where in a channel a run of a plan with one tap starts, or -1 beyond its rows.
    Index place_of(const GatherPlan& plan, const Run& run) const {
        const auto& [d, h, w] = plan.axes;
        const Index sd = run.d * d.step + d.taps[0].offset, sh = run.h * h.step + h.taps[0].offset;
        if (sd < 0 || sd >= d.source_size || sh < 0 || sh >= h.source_size)
            return -1;
        return (sd * h.source_size + sh) * w.source_size + run.w * w.step + w.taps[0].offset;
    }

    void run_task(const PlanLayout& l, Index task) const {
        const Index split = task % l.row_splits, tasks_of_group = ceil_div(l.units, l.units_per_task);
        const Index group = task / l.row_splits / tasks_of_group;
        const Index first = task / l.row_splits % tasks_of_group * l.units_per_task;
        const Index end = std::min(l.units, first + l.units_per_task);
        const Index per_split = ceil_div(blocks_, l.row_splits);
        const Range blocks{split * per_split, std::min(blocks_, (split + 1) * per_split)};
        Unit unit = unit_of(l, group, first);
        for (Index i = first; i < end; ++i) {
            Unit next = i + 1 < end ? unit_of(l, group, i + 1) : Unit{};
            multiply_unit(l, group, blocks, unit, next);
            unit = std::move(next);
        }
    }

    void multiply_unit(const PlanLayout& l, Index group, const Range& blocks, const Unit& unit,
                       const Unit& next) const {
        const Index taps = l.plan->taps(), panels = static_cast<Index>(unit.runs.size());
        T* buffer = workspace<T>(Slot::panels, panel_elements_);
        for (Index j = 0; j < panels; ++j) {
            if (end_of(unit.pieces[j]) < tile_.columns) // columns that no run fills
                std::fill_n(buffer + j * panel_size(l), panel_size(l), T{});
        }
        // Sums of several chunks that lie scattered in the result are kept together until they are complete.
        const GatherAxis& w = l.plan->axes[2];
        const bool scattered = w.out_step > 1 || (w.outputs < tile_.columns && w.outputs % tile_.lanes != 0);
        const Index tile_size = static_cast<Index>(tile_.rows) * tile_.columns;
        const Index plane = volume(p_.source_size);
        std::vector<const T*> vectors(static_cast<std::size_t>(tile_.columns / tile_.lanes));
        T* sums = scattered && p_.sources > l.chunk
                      ? workspace<T>(Slot::results, blocks.size() * panels * tile_size)
                      : nullptr;
        for (Index c = 0; c < p_.sources; c += l.chunk) {
            const Index channels = std::min(l.chunk, p_.sources - c), depth = channels * taps;
            const bool last = c + channels == p_.sources;
            for (Index j = 0; j < panels; ++j)
                if (unit.direct[j].empty())
                    pack_panel(*l.plan, unit.runs[j], c, channels, buffer + j * panel_size(l));
            const NextLines lines(*this, l, last ? next : unit, last ? 0 : c + channels);
            std::size_t fetched = 0;
            for (Index block = blocks.begin; block < blocks.end; ++block) {
                const T* a = packed(l, group, block) + c * taps * tile_.rows;
                for (Index j = 0; j < panels; ++j) {
                    TileStore<T> store = final_store(l, group, block, unit.pieces[j]);
                    store.first = c == 0;
                    store.last = last;
                    T* kept =
                        sums == nullptr ? nullptr : sums + ((block - blocks.begin) * panels + j) * tile_size;
                    if (kept != nullptr && !last)
                        store = whole_.at(kept, store.first, end_of(unit.pieces[j]));
                    else if (kept != nullptr) {
                        store.first = true;
                        store.before = kept;
                    }
                    // The weights of the next block, and then what the next panels will be packed from.
                    T* b = buffer + j * panel_size(l);
                    const T* ahead = j == 0                        ? a + p_.sources * taps * tile_.rows
                                     : fetched < lines.from.size() ? lines.from[fetched++]
                                                                   : nullptr;
                    const Index ahead_bytes = j == 0             ? tile_.rows * static_cast<Index>(sizeof(T))
                                              : ahead != nullptr ? lines.step
                                                                 : 0;
                    if (block == blocks.begin && !unit.direct[j].empty()) {
                        for (std::size_t i = 0; i < vectors.size(); ++i)
                            vectors[i] = unit.direct[j][i] + c * plane;
                        tile_.multiply_source(a, vectors.data(), plane, b, depth, store, ahead, ahead_bytes);
                    } else {
                        tile_.multiply(a, b, depth, store, ahead, ahead_bytes);
                    }
                    if (last && !in_tile(p_.activation))
                        activate(store);
                }
            }
        }
    }

    // Columns of a panel that are in use.
    static Index end_of(const std::vector<Piece>& pieces) {
        return pieces.back().column + pieces.back().count;
    }

    // The lines of a unit's sources for one tap, channel by channel: what packing will read.
    struct NextLines {
        NextLines(const GatherGemm& gemm, const PlanLayout& l, const Unit& unit, Index channel) {
            if (l.plan->taps() > 1)
                return;
            const Index plane = volume(gemm.p_.source_size);
            step = plane * static_cast<Index>(sizeof(T));
            for (const std::vector<Run>& runs : unit.runs)
                for (const Run& run : runs)
                    if (const Index place = gemm.place_of(*l.plan, run); place >= 0)
                        from.push_back(gemm.p_.source + run.source + channel * plane + place);
        }

        std::vector<const T*> from;
        Index step = 0;
    };

    // Where a tile's results belong.
    TileStore<T> final_store(const PlanLayout& l, Index group, Index block,
                             const std::vector<Piece>& pieces) const {
        const Index row = group * p_.results + block * tile_.rows;
        TileStore<T> store{};
        store.y = p_.result + row * volume(p_.result_size);
        store.row_stride = volume(p_.result_size);
        store.column_step = l.plan->axes[2].out_step;
        store.pieces = pieces.data();
        store.piece_count = static_cast<int>(pieces.size());
        store.rows = static_cast<int>(std::min<Index>(tile_.rows, p_.results - block * tile_.rows));
        store.bias = p_.bias == nullptr ? nullptr : p_.bias + row;
        store.activation = p_.activation;
        return store;
    }

    void activate(const TileStore<T>& store) const {
        for (int i = 0; i < store.rows; ++i)
            for (int p = 0; p < store.piece_count; ++p) {
                T* y = store.y + i * store.row_stride + store.pieces[p].offset;
                for (int j = 0; j < store.pieces[p].count; ++j, y += store.column_step)
                    *y = activated(*y, p_.activation);
            }
    }

    // The pixels of a panel, cut where a row or an image ends and at the length of a vector; in long rows at
    // the panel's vectors, so that most are whole.
    std::vector<Run> runs_of(const GatherPlan& plan, Index group, Index panel) const {
        const auto& [d, h, w] = plan.axes;
        const Index pixels = plan.outputs(), all = p_.batch * pixels;
        const Index source_plane = volume(p_.source_size), result_plane = volume(p_.result_size);
        const bool aligned = w.outputs >= tile_.columns;
        std::vector<Run> runs;
        Index pixel = panel * tile_.columns;
        for (Index column = 0; column < tile_.columns && pixel < all;) {
            const Index image = pixel / pixels, in_image = pixel % pixels;
            const Index jw = in_image % w.outputs, jh = in_image / w.outputs % h.outputs;
            const Index jd = in_image / w.outputs / h.outputs;
            const Index room = aligned ? tile_.lanes - column % tile_.lanes
                                       : std::min<Index>(tile_.lanes, tile_.columns - column);
            const Index count = std::min(room, w.outputs - jw);
            Run run{};
            run.piece.column = static_cast<int>(column);
            run.piece.count = static_cast<int>(count);
            run.piece.offset =
                image * p_.groups * p_.results * result_plane +
                ((d.out_start + jd * d.out_step) * p_.result_size[1] + h.out_start + jh * h.out_step) *
                    p_.result_size[2] +
                w.out_start + jw * w.out_step;
            run.source = (image * p_.groups + group) * p_.sources * source_plane;
            run.d = jd;
            run.h = jh;
            run.w = jw;
            runs.push_back(run);
            pixel += count;
            column += count;
        }
        return runs;
    }

    // B[(channel, tap)][columns] of one panel: for every run and tap, a strided copy with zeros beyond the
    // border.
    void pack_panel(const GatherPlan& plan, const std::vector<Run>& runs, Index channel, Index channels,
                    T* panel) const {
        const auto& [d, h, w] = plan.axes;
        const Index plane = volume(p_.source_size), taps = plan.taps();
        const bool turned = worth_turning(w);
        for (const Run& run : runs) {
            T* out = panel + run.piece.column;
            for (const GatherTap& td : d.taps) {
                const Index sd = run.d * d.step + td.offset;
                for (const GatherTap& th : h.taps) {
                    const Index sh = run.h * h.step + th.offset;
                    const bool inside = sd >= 0 && sd < d.source_size && sh >= 0 && sh < h.source_size;
                    if (turned) {
                        for (Index c = 0; c < channels; ++c)
                            turn_windows(w, run,
                                         inside ? p_.source + run.source + (channel + c) * plane +
                                                      (sd * h.source_size + sh) * w.source_size
                                                : nullptr,
                                         out + c * taps * tile_.columns);
                        out += static_cast<Index>(w.taps.size()) * tile_.columns;
                        continue;
                    }
                    for (const GatherTap& tw : w.taps) {
                        const Index start = run.w * w.step + tw.offset;
                        Range valid{0, 0};
                        if (inside)
                            valid = valid_range(run.piece.count, w.step, start, w.source_size);
                        const T* from = p_.source + run.source + channel * plane;
                        if (valid.size() > 0)
                            from += (sd * h.source_size + sh) * w.source_size + start + valid.begin * w.step;
                        // The next panel most likely goes on in the same rows.
                        tile_.pack_run(from, plane, w.step, out, taps * tile_.columns, channels,
                                       static_cast<int>(valid.begin), static_cast<int>(valid.end),
                                       run.piece.count, tile_.columns * w.step);
                        out += tile_.columns;
                    }
                }
            }
        }
    }

    // One row of taps of the windows of a run, which lie side by side in a source row (null: beyond the
    // source) and are turned into columns.
    void turn_windows(const GatherAxis& w, const Run& run, const T* row, T* out) const {
        const Index taps = static_cast<Index>(w.taps.size()), start = run.w * w.step + w.taps.front().offset;
        const Index length = (run.piece.count - 1) * w.step + taps;
        const T* windows = nullptr;
        if (row != nullptr && start >= 0 && start + length <= w.source_size) {
            windows = row + start;
        } else {
            T* padded = workspace<T>(Slot::staging, length);
            const Range valid = row == nullptr ? Range{0, 0} : valid_range(length, 1, start, w.source_size);
            std::fill_n(padded, valid.begin, T{});
            if (valid.size() > 0)
                std::copy_n(row + start + valid.begin, valid.size(), padded + valid.begin);
            std::fill_n(padded + valid.end, length - valid.end, T{});
            windows = padded;
        }
        tile_.transpose(windows, w.step, run.piece.count, taps, out, tile_.columns, run.piece.count);
    }

    // Whether windows are so far apart, and of so many neighbouring taps, that turning them is faster than
    // picking elements.
    static bool worth_turning(const GatherAxis& w) {
        const Index taps = static_cast<Index>(w.taps.size());
        return w.step > 2 && taps >= 4 && w.step <= kFarthest &&
               w.taps.back().offset == w.taps.front().offset + taps - 1;
    }

    const GatherProblem<T>& p_;
    const Tiles<T>& tile_;
    const Index blocks_;
    int threads_;
    const bool by_result_; // its weights lie together, or else a source's
    const Index blocks_per_packing_, sources_per_packing_;
    std::vector<PlanLayout> layouts_;
    const WholeTiles<T> whole_;
    Index tasks_ = 0, panel_elements_ = 0;
    T* weights_ = nullptr;
};

} // namespace

template <class T>
void pack_weight_block(const GatherProblem<T>& p, const std::vector<Index>& taps, Index group, Index first,
                       Index width, const Range& sources, T* out) {
    const Tiles<T>& tile = tiles<T>();
    const Index rows = std::min(width, p.results - first);
    const Index all_taps = volume(p.kernel);
    const T* weight =
        p.weight + group * p.group_stride + first * p.result_stride + sources.begin * p.source_stride;
    const bool in_order =
        static_cast<Index>(taps.size()) == all_taps && std::is_sorted(taps.begin(), taps.end());
    if (p.source_stride == all_taps && in_order) { // rows are contiguous in memory
        tile.transpose(weight, p.result_stride, rows, sources.size() * all_taps, out, width, width);
        return;
    }
    if (all_taps == 1 && p.result_stride == 1) { // columns are
        copy_rows(weight, p.source_stride, rows, out, width, width, sources.size());
        return;
    }
    turn_weights(p, group, first, width, sources, [&](const T* turned, Index source, Index count) {
        const Index taken = static_cast<Index>(taps.size()) * width;
        pick_taps(turned, all_taps, taps, width, count, out + (source - sources.begin) * taken);
    });
}

template <class T>
void gather_gemm(const GatherProblem<T>& problem, int threads) {
    if (problem.plans.empty())
        return;
    GatherGemm<T>(problem, threads).run();
}

#define INSTANTIATE(T)                                                                                       \
    template void pack_weight_block(const GatherProblem<T>&, const std::vector<Index>&, Index, Index, Index, \
                                    const Range&, T*);                                                       \
    template void gather_gemm(const GatherProblem<T>&, int);
FASTCONV_CONV_TYPES(INSTANTIATE)

} // namespace fastconv

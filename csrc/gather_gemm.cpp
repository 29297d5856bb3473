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

#include "activation.h"
#include "gather.h"
#include "kernels.h"
#include "parallel.h"

namespace fastconv {
namespace {

constexpr Index kSourcesPerPacking = 32;
constexpr Index kBlocksPerPacking = 16;
constexpr Index kMostUnitsPerTask = 8;
constexpr Index kFarthest = 1024; // stride of windows that are turned

// A run of pixels of one panel, neighbours in a row of one image.
struct Run {
    Piece piece;
    Index source; // of its image's group
    Index d, h, w;
};

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
        : p_(problem), tile_(tiles<T>()), blocks_(ceil_div(problem.results, tile_.rows)), threads_(threads) {
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
                                                     : p_.groups * ceil_div(blocks_, kBlocksPerPacking) *
                                                           ceil_div(p_.sources, kSourcesPerPacking);
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
        // Several panels share one pass over the weights, but every thread should have work.
        const Index wanted = l.chunk * plan.taps() <= 600 ? 4 : 2;
        l.panels_per_unit = std::clamp<Index>(l.panels * p_.groups / (3 * threads_), 1, wanted);
        l.units = ceil_div(l.panels, l.panels_per_unit);
        const Index all = l.units * p_.groups;
        l.row_splits = all >= 3 * threads_ ? 1 : std::min<Index>(blocks_, threads_);
        l.units_per_task = std::clamp<Index>(all / (8 * threads_), 1, kMostUnitsPerTask);
        l.tasks = p_.groups * ceil_div(l.units, l.units_per_task) * l.row_splits;
        return l;
    }

    Index panel_size(const PlanLayout& l) const { return l.chunk * l.plan->taps() * tile_.columns; }

    T* packed(const PlanLayout& l, Index group, Index block) const {
        return weights_ + l.weights + (group * blocks_ + block) * p_.sources * l.plan->taps() * tile_.rows;
    }

    // Packs some sources' weights for some blocks. Where a source's weights lie together (the input
    // gradient), walking over the blocks of a few sources reads whole pages; the other way round would touch
    // a page for every source.
    void pack_weights(Index task) const {
        const Index block_parts = ceil_div(blocks_, kBlocksPerPacking);
        const Index source_parts = ceil_div(p_.sources, kSourcesPerPacking);
        const Index group = task / (block_parts * source_parts);
        const Index first_block = task % block_parts * kBlocksPerPacking;
        const Index first_source = task / block_parts % source_parts * kSourcesPerPacking;
        const Range sources{first_source, std::min(p_.sources, first_source + kSourcesPerPacking)};
        for (Index block = first_block; block < std::min(blocks_, first_block + kBlocksPerPacking); ++block)
            if (layouts_.size() == 1)
                pack_weight_block(p_, layouts_[0].taps, group, block * tile_.rows, tile_.rows, sources,
                                  packed(layouts_[0], group, block) +
                                      sources.begin * layouts_[0].plan->taps() * tile_.rows);
            else
                deal_weights(group, block, sources);
    }

    // The same for several plans, between which the kernel positions are divided: each weight is read once.
    void deal_weights(Index group, Index block, const Range& sources) const {
        const Index first = block * tile_.rows, rows = std::min<Index>(tile_.rows, p_.results - first);
        const Index all_taps = volume(p_.kernel);
        T* turned = workspace<T>(Slot::staging, all_taps * tile_.rows);
        for (Index c = sources.begin; c < sources.end; ++c) {
            const T* weight =
                p_.weight + group * p_.group_stride + first * p_.result_stride + c * p_.source_stride;
            tile_.transpose(weight, p_.result_stride, rows, all_taps, turned, tile_.rows, tile_.rows);
            for (const PlanLayout& l : layouts_) {
                T* out = packed(l, group, block) + c * l.plan->taps() * tile_.rows;
                for (const Index tap : l.taps)
                    out = std::copy_n(turned + tap * tile_.rows, tile_.rows, out);
            }
        }
    }

    // The pixels of some panels, and where their results belong.
    struct Unit {
        std::vector<std::vector<Run>> runs;
        std::vector<std::vector<Piece>> pieces;
    };

    Unit unit_of(const PlanLayout& l, Index group, Index i) const {
        Unit unit;
        const Index end = std::min(l.panels, (i + 1) * l.panels_per_unit);
        for (Index panel = i * l.panels_per_unit; panel < end; ++panel) {
            unit.runs.push_back(runs_of(*l.plan, group, panel));
            std::vector<Piece>& pieces = unit.pieces.emplace_back();
            for (const Run& run : unit.runs.back())
                pieces.push_back(run.piece);
        }
        return unit;
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
            const Piece& end = unit.pieces[j].back();
            if (end.column + end.count < tile_.columns) // columns that no run fills
                std::fill_n(buffer + j * panel_size(l), panel_size(l), T{});
        }
        // Sums of several chunks that lie scattered in the result are kept together until they are complete.
        const GatherAxis& w = l.plan->axes[2];
        const bool scattered = w.out_step > 1 || w.outputs % tile_.lanes != 0;
        const Index tile_size = static_cast<Index>(tile_.rows) * tile_.columns;
        T* sums = scattered && p_.sources > l.chunk
                      ? workspace<T>(Slot::results, blocks.size() * panels * tile_size)
                      : nullptr;
        for (Index c = 0; c < p_.sources; c += l.chunk) {
            const Index channels = std::min(l.chunk, p_.sources - c), depth = channels * taps;
            const bool last = c + channels == p_.sources;
            for (Index j = 0; j < panels; ++j)
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
                        store = whole_.at(kept, store.first);
                    else if (kept != nullptr) {
                        store.first = true;
                        store.before = kept;
                    }
                    // The weights of the next block, and then what the next panels will be packed from.
                    const T* b = buffer + j * panel_size(l);
                    if (j == 0)
                        tile_.multiply(a, b, depth, store, a + p_.sources * taps * tile_.rows,
                                       tile_.rows * static_cast<Index>(sizeof(T)));
                    else if (fetched < lines.from.size())
                        tile_.multiply(a, b, depth, store, lines.from[fetched++], lines.step);
                    else
                        tile_.multiply(a, b, depth, store, b, 0);
                    if (last && !in_tile(p_.activation))
                        activate(store);
                }
            }
        }
    }

    // The lines of a unit's sources for one tap, channel by channel: what packing will read.
    struct NextLines {
        NextLines(const GatherGemm& gemm, const PlanLayout& l, const Unit& unit, Index channel) {
            const auto& [d, h, w] = l.plan->axes;
            if (l.plan->taps() > 1)
                return;
            const Index plane = volume(gemm.p_.source_size);
            step = plane * static_cast<Index>(sizeof(T));
            for (const std::vector<Run>& runs : unit.runs)
                for (const Run& run : runs)
                    from.push_back(gemm.p_.source + run.source + channel * plane +
                                   ((run.d * d.step + d.taps[0].offset) * h.source_size + run.h * h.step +
                                    h.taps[0].offset) *
                                       w.source_size +
                                   run.w * w.step + w.taps[0].offset);
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

    // The pixels of a panel, cut where a row or an image ends and at the length of a vector.
    std::vector<Run> runs_of(const GatherPlan& plan, Index group, Index panel) const {
        const auto& [d, h, w] = plan.axes;
        const Index pixels = plan.outputs(), all = p_.batch * pixels;
        const Index source_plane = volume(p_.source_size), result_plane = volume(p_.result_size);
        std::vector<Run> runs;
        Index pixel = panel * tile_.columns;
        for (Index column = 0; column < tile_.columns && pixel < all;) {
            const Index image = pixel / pixels, in_image = pixel % pixels;
            const Index jw = in_image % w.outputs, jh = in_image / w.outputs % h.outputs;
            const Index jd = in_image / w.outputs / h.outputs;
            const Index count = std::min<Index>({tile_.lanes, tile_.columns - column, w.outputs - jw});
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
    if (all_taps == 1 && p.result_stride == 1 && rows == width) { // columns are
        for (Index c = 0; c < sources.size(); ++c)
            std::copy_n(weight + c * p.source_stride, width, out + c * width);
        return;
    }
    T* turned = workspace<T>(Slot::staging, all_taps * width);
    for (Index c = 0; c < sources.size(); ++c) {
        tile.transpose(weight + c * p.source_stride, p.result_stride, rows, all_taps, turned, width, width);
        for (const Index tap : taps)
            out = tap < 0 ? std::fill_n(out, width, T{}) : std::copy_n(turned + tap * width, width, out);
    }
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

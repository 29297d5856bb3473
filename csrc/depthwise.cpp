// Depthwise convolutions, and others whose results each read one source channel. They do little more than
// read their source and write their results, so nothing is packed or copied: the tiles read the source where
// it lies, fetching into the cache what comes next, since processors foresee such rows badly. Results beyond
// the size of the caches are computed by blocks in the first-level cache and stored past the caches.
#include "depthwise.h"

#include <numeric>

#include "activation.h"
#include "kernels.h"
#include "parallel.h"

namespace fastconv {

std::vector<const GatherAxis*> DepthwiseLayer::axes(const std::vector<GatherPlan>& plans,
                                                    std::size_t dimension) {
    std::vector<const GatherAxis*> found;
    for (const GatherPlan& plan : plans) {
        const GatherAxis& axis = plan.axes[dimension];
        if (std::none_of(found.begin(), found.end(),
                         [&](const GatherAxis* other) { return other->out_start == axis.out_start; }))
            found.push_back(&axis);
    }
    std::sort(found.begin(), found.end(),
              [](const GatherAxis* a, const GatherAxis* b) { return a->out_start < b->out_start; });
    return found;
}

namespace {

// By offset, which an axis of the input gradient has in descending order.
std::vector<GatherTap> ascending(std::vector<GatherTap> taps) {
    if (taps.front().offset > taps.back().offset)
        std::reverse(taps.begin(), taps.end());
    return taps;
}

// From each tap to the next.
Index apart(const std::vector<GatherTap>& taps, Index GatherTap::* what) {
    return taps.size() > 1 ? taps[1].*what - taps[0].*what : 0;
}

// [0, count) in as few ranges of at most `most` as possible, all of nearly one size.
std::vector<Range> shares(std::size_t count, Index most) {
    const Index all = static_cast<Index>(count), parts = ceil_div(all, most);
    std::vector<Range> ranges;
    ranges.reserve(static_cast<std::size_t>(parts));
    for (Index i = 0; i < parts; ++i)
        ranges.push_back({all * i / parts, all * (i + 1) / parts});
    return ranges;
}

// Lanes as bits.
std::uint32_t bits(const Range& lanes) {
    const auto below = [](Index lane) { return (std::uint32_t{1} << lane) - 1; };
    return lanes.size() > 0 ? below(lanes.end) & ~below(lanes.begin) : 0;
}

} // namespace

DepthwiseKind DepthwiseLayer::kind_of(const std::vector<GatherPlan>& plans, const Extents& extents) {
    const std::vector<const GatherAxis*> across = axes(plans, 2);
    const auto either = [&](DepthwiseKind kind, DepthwiseKind pairs) {
        const bool short_rows = across.front()->outputs <= extents.results[static_cast<int>(pairs)];
        return extents.channels && short_rows ? pairs : kind;
    };
    if (across.size() > 1)
        return either(DepthwiseKind::two_windows, DepthwiseKind::two_windows_pairs);
    if (across.front()->step == 1)
        return either(DepthwiseKind::step_one, DepthwiseKind::step_one_pairs);
    return either(DepthwiseKind::step_two, DepthwiseKind::step_two_pairs);
}

DepthwiseLayer::DepthwiseLayer(const std::vector<GatherPlan>& plans, const Size3& source_size,
                               const Size3& result_size, const Size3& kernel, const Extents& extents)
    : source_size_(source_size), kernel_(kernel), kind_(kind_of(plans, extents)),
      lanes_(pairs() ? extents.lanes / 2 : extents.lanes),
      tap_columns_(extents.tap_columns[static_cast<int>(kind_)]),
      results_(extents.results[static_cast<int>(kind_)]), slices_(static_cast<std::size_t>(result_size[0])) {
    const std::vector<const GatherAxis*> across = axes(plans, 2);
    const Index vectors = ceil_div(across.front()->outputs, results_);
    for (const GatherAxis* d : axes(plans, 0))
        for (Index slice = 0; slice < d->outputs; ++slice) {
            std::vector<Rows>& rows = slices_[static_cast<std::size_t>(d->out_start + slice * d->out_step)];
            for (const GatherAxis* h : axes(plans, 1)) {
                Rows phase{};
                for (std::size_t i = 0; i < across.size(); ++i)
                    phase.windows[i] = windows(*d, *h, *across[i], slice, vectors);
                // With dilation only every so many rows share source rows: a whole number of steps and units.
                const Index unit = phase.windows[0].unit, apart = unit / std::gcd(h->step, unit);
                for (Index first = 0; first < std::min(apart, h->outputs); ++first) {
                    phase.first = h->out_start + first * h->out_step;
                    phase.step = apart * h->out_step;
                    phase.count = ceil_div(h->outputs - first, apart);
                    for (DepthwiseWindows& w : phase.windows) {
                        w.top = first * h->step;
                        w.row_step = apart * h->step;
                    }
                    rows.push_back(phase);
                }
            }
        }
}

DepthwiseWindows DepthwiseLayer::windows(const GatherAxis& d, const GatherAxis& h, const GatherAxis& w,
                                         Index slice, Index vectors) {
    DepthwiseWindows windows{};
    windows.rows = source_size_[1];
    windows.columns = source_size_[2];
    // From top to bottom and from left to right.
    const std::vector<GatherTap> down = ascending(h.taps), across = ascending(w.taps);
    windows.weight_row = apart(down, &GatherTap::kernel_position) * kernel_[2];
    windows.weight_column = apart(across, &GatherTap::kernel_position);
    // A single row of taps has no distance of its own; this one suits the tiles.
    windows.unit = down.size() > 1        ? apart(down, &GatherTap::offset)
                   : h.step % w.step == 0 ? h.step / w.step
                                          : h.step;

    const bool neighbours = apart(across, &GatherTap::offset) == 1;
    const std::vector<Range> tap_rows = shares(down.size(), kDepthwiseTapRows);
    const std::vector<Range> tap_columns = shares(across.size(), neighbours ? tap_columns_ : 1);
    std::vector<DepthwisePiece> pieces;
    std::vector<int> ends;
    for (Index vector = 0; vector < vectors; ++vector) {
        for (const Range& columns : tap_columns) {
            const DepthwisePiece lanes =
                piece(across[static_cast<std::size_t>(columns.begin)], columns.size(), w, vector);
            if (std::all_of(lanes.used, lanes.used + lanes.columns,
                            [](std::uint32_t bits) { return bits == 0; }))
                continue;
            for (const Range& rows : tap_rows)
                for (const GatherTap& td : d.taps) {
                    const GatherTap& th = down[static_cast<std::size_t>(rows.begin)];
                    const Index depth = slice * d.step + td.offset;
                    if (depth < 0 || depth >= source_size_[0])
                        continue;
                    DepthwisePiece piece = lanes;
                    piece.from += depth * source_size_[1] * source_size_[2];
                    piece.row = th.offset;
                    piece.rows = static_cast<int>(rows.size());
                    piece.weight += (td.kernel_position * kernel_[1] + th.kernel_position) * kernel_[2];
                    pieces.push_back(piece);
                }
        }
        ends.push_back(static_cast<int>(pieces.size()));
    }
    windows.pieces = pieces.data();
    windows.ends = ends.data();
    pieces_.push_back(std::move(pieces));
    ends_.push_back(std::move(ends));
    return windows;
}

DepthwisePiece DepthwiseLayer::piece(const GatherTap& first, Index tap_columns, const GatherAxis& w,
                                     Index vector) const {
    const Index start = vector * results_ * w.step + first.offset;
    const Range results{0, std::min<Index>(results_, w.outputs - vector * results_)};
    DepthwisePiece piece{};
    piece.from = start;
    piece.weight = first.kernel_position;
    piece.columns = static_cast<int>(tap_columns);
    piece.whole = true;
    const std::uint32_t all = (std::uint32_t{1} << lanes_) - 1;
    for (Index i = 0; i < w.step; ++i) {
        piece.read[i] = bits(valid_range(lanes_, 1, start + i * lanes_, source_size_[2]));
        piece.whole = piece.whole && piece.read[i] == all;
    }
    for (Index u = 0; u < tap_columns; ++u) {
        const Range inside = valid_range(lanes_, w.step, start + u % w.step, source_size_[2]);
        const Index shift = u / w.step;
        piece.used[u] =
            bits({std::max(inside.begin, results.begin + shift), std::min(inside.end, results.end + shift)});
        piece.whole = piece.whole && piece.used[u] == all;
    }
    if (pairs()) {
        // The upper half is read as the lower one; with step two, each channel's vector is read whole.
        for (std::uint32_t& used : piece.used)
            used |= used << lanes_;
        if (w.step == 1)
            piece.read[1] = piece.read[0] << lanes_;
        else
            piece.read[0] = piece.read[1] = piece.read[0] | piece.read[1] << lanes_;
        piece.whole = false;
    }
    return piece;
}

namespace {

constexpr Index kBlockBytes = 32 << 10;  // of results
constexpr Index kRowsOfBlock = 28;       // whole tiles
constexpr Index kCachedBytes = 20 << 20; // of sources and results; beyond, nobody finds them in a cache
constexpr Index kBlocksPerTask = 4;      // neighbours, so that what one fetches is its own
constexpr Index kTasksPerThread = 4;

template <class T>
class Depthwise {
public:
    explicit Depthwise(const GatherProblem<T>& p)
        : p_(p), tile_(depthwise_tiles<T>()), layer_(p), channels_(p.groups * p.results),
          source_plane_(volume(p.source_size)), result_plane_(volume(p.result_size)),
          taps_(volume(p.kernel)) {
        const auto& [depth, rows, columns] = p.result_size;
        const Index slice_bytes = rows * columns * static_cast<Index>(sizeof(T));
        const Index row_bytes = columns * static_cast<Index>(sizeof(T));
        block_rows_ = slice_bytes <= kBlockBytes
                          ? rows
                          : std::max<Index>(1, kBlockBytes / row_bytes / kRowsOfBlock) * kRowsOfBlock;
        down_ = ceil_div(rows, block_rows_);
        together_ = depth * down_ > 1 || p.results > 1
                        ? 1
                        : std::clamp<Index>(kBlockBytes / slice_bytes, 1, channels_);
        const Index bytes =
            p.batch * static_cast<Index>(sizeof(T)) * (p.groups * source_plane_ + channels_ * result_plane_);
        past_caches_ = bytes > kCachedBytes;
    }

    void run(int threads) const {
        const Index work = p_.batch * channels_ * result_plane_ * taps_;
        const int workers = worthwhile_threads(kMemoryBound * work, threads);
        const Index runs = ceil_div(channels_, together_), blocks = p_.result_size[0] * down_;
        const Index total = p_.batch * runs * blocks;
        const Index per_task = std::clamp<Index>(total / (kTasksPerThread * workers), 1, kBlocksPerTask);
        Parallel::run(ceil_div(total, per_task), workers, [&](Index task) {
            const Index end = std::min(total, (task + 1) * per_task);
            for (Index i = task * per_task; i < end; ++i)
                compute(i / blocks / runs, i / blocks % runs * together_, i % blocks, i + 1 == end);
        });
    }

private:
    // One block of the results of some channels of an image; the last one of a task.
    void compute(Index image, Index channel, Index block, bool last) const {
        const auto& [depth, rows, columns] = p_.result_size;
        const Index slice = block / down_, top = block % down_ * block_rows_;
        const Index bottom = std::min(rows, top + block_rows_);
        const Index channels = std::min(together_, channels_ - channel);
        T* y = p_.result + (image * channels_ + channel) * result_plane_ + (slice * rows + top) * columns;
        const Index count = channels > 1 ? channels * result_plane_ : (bottom - top) * columns;
        T* to = past_caches_ ? workspace<T>(Slot::staging, count) : y;

        DepthwiseSums<T> call{};
        call.kind = layer_.kind();
        call.source = p_.source + (image * p_.groups + channel / p_.results) * source_plane_;
        call.array = p_.source;
        call.array_end = p_.source + p_.batch * p_.groups * source_plane_;
        call.weight = p_.weight + channel * taps_;
        call.source_channel = source_plane_;
        call.weight_channel = taps_;
        call.result_channel = result_plane_;
        call.bias_channel = 1;
        call.channels = channels;
        call.columns = columns;
        call.bias = p_.bias == nullptr ? nullptr : p_.bias + channel;
        call.activation = p_.activation;
        for (const DepthwiseLayer::Rows& phase : layer_.slices()[static_cast<std::size_t>(slice)]) {
            const Index first = std::max<Index>(0, ceil_div(top - phase.first, phase.step));
            const Index last = std::min(phase.count, ceil_div(bottom - phase.first, phase.step));
            if (first >= last)
                continue;
            call.windows = phase.windows.data();
            call.first_row = first;
            call.result = to + (phase.first + first * phase.step - top) * columns;
            call.result_row = phase.step * columns;
            call.rows = last - first;
            tile_.sums(call);
        }
        if (!in_tile(p_.activation))
            std::transform(to, to + count, to, [&](T value) { return activated(value, p_.activation); });
        if (past_caches_)
            tiles<T>().stream(to, count, y, last);
    }

    const GatherProblem<T>& p_;
    const DepthwiseTiles<T>& tile_;
    const DepthwiseLayer layer_;
    const Index channels_, source_plane_, result_plane_, taps_;
    Index block_rows_, down_; // rows of a block, and how many of these make a slice
    Index together_;          // channels of a block
    bool past_caches_;
};

} // namespace

template <class T>
bool depthwise_applies(const GatherProblem<T>& p) {
    return p.sources == 1 && DepthwiseLayer::suits(p);
}

template <class T>
void depthwise(const GatherProblem<T>& p, int threads) {
    Depthwise<T>(p).run(threads);
}

#define INSTANTIATE(T)                                        \
    template bool depthwise_applies(const GatherProblem<T>&); \
    template void depthwise(const GatherProblem<T>&, int);
FASTCONV_MEAN_TYPES(INSTANTIATE)

} // namespace fastconv

// A zero-padded copy of the piece of the source that a block of results reads. It is split by the step of the
// gather (even and odd rows and columns for step 2), so that for every tap neighbouring results read
// neighbouring elements, and rows of results lie as far apart as rows of the copy.
#pragma once

#include "gather.h"

namespace fastconv {

class WindowLayout {
public:
    static constexpr Index kLargestExtent =
        64; // of a dilated kernel or a step; beyond, windows are mostly margin

    static bool suits(const std::vector<GatherPlan>& plans) {
        for (std::size_t i = 0; i < 3 && !plans.empty(); ++i)
            if (plans.front().axes[i].step > kLargestExtent || reach(plans, i).size() > kLargestExtent)
                return false;
        return true;
    }

    // The window of `sources` channels for all plans, which have their steps in common: blocks of results are
    // as large as `bytes` allow.
    WindowLayout(const std::vector<GatherPlan>& plans, Index sources, int lanes, Index element_bytes,
                 Index bytes)
        : plan_(plans.front()), sources_(sources), lanes_(lanes) {
        Size3 extents;
        for (std::size_t i = 0; i < 3; ++i) {
            const Range offsets = reach(plans, i);
            origin_[i] = offsets.begin;
            extents[i] = offsets.size();
            for (const GatherPlan& plan : plans)
                outputs_[i] = std::max(outputs_[i], plan.axes[i].outputs);
        }
        for (const GatherPlan& plan : plans)
            for (const GatherTap& tap : plan.axes[0].taps)
                slices_.insert(slices_.end(), tap.offset);
        std::sort(slices_.begin(), slices_.end());
        slices_.erase(std::unique(slices_.begin(), slices_.end()), slices_.end());

        const auto& [d, h, w] = plan_.axes;
        const Index slices = sources * static_cast<Index>(slices_.size());
        const Index margin_rows = (extents[1] - 1) / h.step, margin = (extents[2] - 1) / w.step;
        const Index column_bytes = slices * h.step * w.step * element_bytes;
        const Index tall = std::min<Index>(ceil_div(16, h.step), outputs_[1] + margin_rows);
        columns = std::clamp<Index>(bytes / tall / column_bytes, 4 * lanes, 1024) / (4 * lanes) * (4 * lanes);
        columns = std::min(columns, outputs_[2]);
        row_stride = columns + margin;
        rows = std::clamp<Index>(bytes / (column_bytes * row_stride) - margin_rows, 1, outputs_[1]);
        rows = ceil_div(outputs_[1], ceil_div(outputs_[1], rows)); // blocks alike
        window_rows_ = rows + margin_rows;
        // A vector at the end of the last row may reach beyond it.
        elements = slices * h.step * w.step * window_rows_ * row_stride + lanes;
    }

    // Where the first result of a block finds what it reads, for every (source, tap) of a plan.
    std::vector<Index> offsets(const GatherPlan& plan) const {
        const Index down = plan.axes[1].step, across = plan.axes[2].step;
        const Index part = window_rows_ * row_stride;
        std::vector<Index> all;
        all.reserve(static_cast<std::size_t>(sources_ * plan.taps()));
        for (Index c = 0; c < sources_; ++c)
            plan.for_each_tap([&](const GatherTap& td, const GatherTap& th, const GatherTap& tw) {
                const Index slice =
                    std::lower_bound(slices_.begin(), slices_.end(), td.offset) - slices_.begin();
                const Index row = th.offset - origin_[1], column = tw.offset - origin_[2];
                all.push_back(
                    (((c * static_cast<Index>(slices_.size()) + slice) * down + row % down) * across +
                     column % across) *
                        part +
                    row / down * row_stride + column / across);
            });
        return all;
    }

    // The number of blocks, and the first result and size of one.
    Index blocks() const {
        return outputs_[0] * ceil_div(outputs_[1], rows) * ceil_div(outputs_[2], columns);
    }

    struct Block {
        Index d, h, w, rows, columns;
    };

    Block block(Index i) const {
        const Index across = ceil_div(outputs_[2], columns), down = ceil_div(outputs_[1], rows);
        const Index first_row = i / across % down * rows, first_column = i % across * columns;
        return {i / across / down, first_row, first_column, std::min(rows, outputs_[1] - first_row),
                std::min(columns, outputs_[2] - first_column)};
    }

    // Copies what `block` reads of the sources that start at `source`, one plane after the other.
    template <class T>
    void copy(const T* source, const Block& block, T* window) const {
        const auto& [d, h, w] = plan_.axes;
        const Index plane = d.source_size * h.source_size * w.source_size;
        for (Index c = 0; c < sources_; ++c)
            for (const Index slice : slices_) {
                copy_slice(source + c * plane, block, block.d * d.step + slice, window);
                window += h.step * w.step * window_rows_ * row_stride;
            }
    }

    Index rows, columns; // results of a whole block
    Index elements;      // of the window
    Index row_stride;    // between rows of results

private:
    // The offsets of all taps of an axis.
    static Range reach(const std::vector<GatherPlan>& plans, std::size_t axis) {
        const Index some = plans.front().axes[axis].taps.front().offset;
        Range offsets{some, some + 1};
        for (const GatherPlan& plan : plans)
            for (const GatherTap& tap : plan.axes[axis].taps)
                offsets = {std::min(offsets.begin, tap.offset), std::max(offsets.end, tap.offset + 1)};
        return offsets;
    }

    template <class T>
    void copy_slice(const T* plane, const Block& block, Index sd, T* slice) const {
        const auto& [d, h, w] = plan_.axes;
        const Tiles<T>& tile = tiles<T>();
        const Index needed = block.rows + window_rows_ - rows,
                    plane_elements = volume({d.source_size, h.source_size, w.source_size});
        for (Index i = 0; i < h.step * w.step; ++i, slice += window_rows_ * row_stride) {
            const Index top = block.h * h.step + origin_[1] + i / w.step, part = i % w.step;
            const Range inside =
                sd >= 0 && sd < d.source_size ? valid_range(needed, h.step, top, h.source_size) : Range{0, 0};
            std::fill_n(slice, inside.begin * row_stride, T{});
            std::fill_n(slice + inside.end * row_stride, (needed - inside.end) * row_stride, T{});
            if (inside.size() == 0)
                continue;
            const T* from = plane + (sd * h.source_size + top + inside.begin * h.step) * w.source_size;
            T* to = slice + inside.begin * row_stride;
            const bool one_row = inside.size() == 1; // whose vectors follow one another
            for (Index column = 0, vectors = 1; column < row_stride; column += vectors * lanes_) {
                const Index count = std::min(lanes_, row_stride - column);
                const Index start = (block.w + column) * w.step + origin_[2] + part;
                const Range valid = valid_range(count, w.step, start, w.source_size);
                const T* first = valid.size() > 0 ? from + start + valid.begin * w.step : from;
                vectors = one_row && valid.size() == lanes_
                              ? valid_range(row_stride - column, w.step, start, w.source_size).size() / lanes_
                              : 1;
                // What is fetched is the same piece of the next source.
                tile.pack_run(first, one_row ? lanes_ * w.step : h.step * w.source_size, w.step, to + column,
                              one_row ? lanes_ : row_stride, one_row ? vectors : inside.size(),
                              static_cast<int>(valid.begin), static_cast<int>(valid.end),
                              static_cast<int>(count), plane_elements);
            }
        }
    }

    const GatherPlan& plan_;
    const Index sources_, lanes_;
    Size3 origin_, outputs_{};
    std::vector<Index> slices_; // offsets
    Index window_rows_;
};

} // namespace fastconv

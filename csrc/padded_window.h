// A zero-padded copy of the piece of the source that a block of results reads. It is split by the step of the
// gather (even and odd columns for step 2), so that for every tap neighbouring results read neighbouring
// elements.
#pragma once

#include "gather.h"

namespace fastconv {

class WindowLayout {
public:
    static constexpr Index kLargestExtent =
        64; // of a dilated kernel or a step; beyond, windows are mostly margin

    static bool suits(const GatherPlan& plan) {
        return std::all_of(plan.axes.begin(), plan.axes.end(), [](const GatherAxis& a) {
            return a.step <= kLargestExtent && extent(a) <= kLargestExtent;
        });
    }

    // The window of `sources` channels: blocks of results are as large as `bytes` allow.
    WindowLayout(const GatherPlan& plan, Index sources, int lanes, Index element_bytes, Index bytes)
        : plan_(plan), sources_(sources), lanes_(lanes),
          origin_{smallest_offset(plan.axes[0]), smallest_offset(plan.axes[1]),
                  smallest_offset(plan.axes[2])} {
        const auto& [d, h, w] = plan.axes;
        slices_ = static_cast<Index>(d.taps.size());
        const Index column_bytes = sources * slices_ * w.step * element_bytes;
        columns = std::clamp<Index>(bytes / 16 / column_bytes, 4 * lanes, 1024) / (4 * lanes) * (4 * lanes);
        columns = std::min(columns, w.outputs);
        row_length_ = columns + (extent(w) - 1) / w.step + 1;
        rows = std::clamp<Index>((bytes / (column_bytes * row_length_) - extent(h)) / h.step, 1, h.outputs);
        window_rows_ = (rows - 1) * h.step + extent(h);
        row_stride = h.step * w.step * row_length_;
        // A vector at the end of the last row may reach beyond it.
        elements = sources * slices_ * window_rows_ * w.step * row_length_ + lanes;
        for (Index c = 0; c < sources; ++c)
            for (Index i = 0; i < slices_; ++i)
                for (const GatherTap& th : h.taps)
                    for (const GatherTap& tw : w.taps) {
                        const Index column = tw.offset - origin_[2];
                        const Index row = (c * slices_ + i) * window_rows_ + th.offset - origin_[1];
                        offsets.push_back((row * w.step + column % w.step) * row_length_ + column / w.step);
                    }
    }

    // The number of blocks, and the first result and size of one.
    Index blocks() const {
        const auto& [d, h, w] = plan_.axes;
        return d.outputs * ceil_div(h.outputs, rows) * ceil_div(w.outputs, columns);
    }

    struct Block {
        Index d, h, w, rows, columns;
    };

    Block block(Index i) const {
        const auto& [d, h, w] = plan_.axes;
        const Index across = ceil_div(w.outputs, columns), down = ceil_div(h.outputs, rows);
        const Index first_row = i / across % down * rows, first_column = i % across * columns;
        return {i / across / down, first_row, first_column, std::min(rows, h.outputs - first_row),
                std::min(columns, w.outputs - first_column)};
    }

    // Copies what `block` reads of the sources that start at `source`, one plane after the other.
    template <class T>
    void copy(const T* source, const Block& block, T* window) const {
        const auto& [d, h, w] = plan_.axes;
        const Index plane = d.source_size * h.source_size * w.source_size;
        for (Index c = 0; c < sources_; ++c)
            for (Index i = 0; i < slices_; ++i)
                copy_slice(source + c * plane, block,
                           block.d * d.step + d.taps[static_cast<std::size_t>(i)].offset,
                           window + (c * slices_ + i) * window_rows_ * w.step * row_length_);
    }

    Index rows, columns;        // results of a whole block
    Index elements;             // of the window
    Index row_stride;           // between rows of results
    std::vector<Index> offsets; // of every (source, tap)

private:
    static constexpr Index kRowsAhead = 8; // that copies fetch

    static Index smallest_offset(const GatherAxis& a) {
        Index smallest = a.taps.front().offset;
        for (const GatherTap& tap : a.taps)
            smallest = std::min(smallest, tap.offset);
        return smallest;
    }

    static Index extent(const GatherAxis& a) {
        Index largest = a.taps.front().offset;
        for (const GatherTap& tap : a.taps)
            largest = std::max(largest, tap.offset);
        return largest - smallest_offset(a) + 1;
    }

    template <class T>
    void copy_slice(const T* plane, const Block& block, Index sd, T* slice) const {
        const auto& [d, h, w] = plan_.axes;
        const Tiles<T>& tile = tiles<T>();
        const Index needed = (block.rows - 1) * h.step + window_rows_ - (rows - 1) * h.step;
        const Index row_elements = w.step * row_length_, top = block.h * h.step + origin_[1];
        const Range inside =
            sd >= 0 && sd < d.source_size ? valid_range(needed, 1, top, h.source_size) : Range{0, 0};
        std::fill_n(slice, inside.begin * row_elements, T{});
        std::fill_n(slice + inside.end * row_elements, (needed - inside.end) * row_elements, T{});
        if (inside.size() == 0)
            return;
        const T* from = plane + (sd * h.source_size + top + inside.begin) * w.source_size;
        slice += inside.begin * row_elements;
        for (Index part = 0; part < w.step; ++part, slice += row_length_)
            for (Index column = 0; column < row_length_; column += lanes_) {
                const Index count = std::min(lanes_, row_length_ - column);
                const Index start = (block.w + column) * w.step + origin_[2] + part;
                const Range valid = valid_range(count, w.step, start, w.source_size);
                const T* first = valid.size() > 0 ? from + start + valid.begin * w.step : from;
                tile.pack_run(first, w.source_size, w.step, slice + column, row_elements, inside.size(),
                              static_cast<int>(valid.begin), static_cast<int>(valid.end),
                              static_cast<int>(count), kRowsAhead * w.source_size);
            }
    }

    const GatherPlan& plan_;
    const Index sources_, lanes_;
    const Size3 origin_;
    Index slices_, window_rows_, row_length_;
};

} // namespace fastconv

// The Python face of the kernels. fastconv.backends.cpp calls it with sound arguments, but anybody can: so
// each entry checks again what memory safety needs, and releases the GIL around the kernel.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "algorithms.h"
#include "buffers.h"
#include "conv_plan.h"
#include "fma_peak.h"
#include "kernels.h"
#include "narrow.h"
#include "parallel.h"

namespace py = pybind11;

namespace fastconv {
namespace {

constexpr Index kSizeLimit = Index{1} << 61;  // geometry.SIZE_LIMIT: sums of two sizes stay inside 64 bits
constexpr Index kReachLimit = Index{1} << 62; // of a window from where the first one starts
constexpr double kMostExplained = 1e18;       // multiply-adds: nobody waits for as many
constexpr double kMostPlanned = 1e18;         // elements of an array, which no memory holds

// Signal handlers run in the main thread only. Others do not even ask for the interpreter's lock: where it
// ends meanwhile, that would end them, too.
unsigned long main_thread = 0;

void check_interrupt() {
    if (PyThread_get_thread_ident() != main_thread)
        return;
    py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0)
        throw py::error_already_set();
}

std::string field_name(std::size_t i) {
    return "geometry field " + std::to_string(i);
}

// The caller has counted the fields.
py::handle field_of(const py::tuple& fields, std::size_t i) {
    return PyTuple_GET_ITEM(fields.ptr(), static_cast<Py_ssize_t>(i));
}

Index int_field(const py::tuple& fields, std::size_t i) {
    const py::handle field = field_of(fields, i);
    py::object number; // of what is no int, but gives one
    if (!PyLong_CheckExact(field.ptr())) {
        number = py::reinterpret_steal<py::object>(PyNumber_Index(field.ptr()));
        if (!number)
            throw py::error_already_set(); // TypeError
    }
    int overflow = 0;
    const Index value = PyLong_AsLongLongAndOverflow((number ? number : field).ptr(), &overflow);
    if (overflow != 0)
        throw py::value_error(field_name(i) + " does not fit 64 bits");
    return value;
}

Index index_field(const py::tuple& fields, std::size_t i, Index low) {
    const Index value = int_field(fields, i);
    if (value < low || value > kSizeLimit)
        throw py::value_error(field_name(i) + " is out of range: " + std::to_string(value));
    return value;
}

Size3 size_field(const py::tuple& fields, std::size_t i, Index low) {
    const py::handle field = field_of(fields, i);
    if (!py::isinstance<py::tuple>(field))
        throw py::type_error(field_name(i) + " must be a tuple");
    const auto size = py::reinterpret_borrow<py::tuple>(field);
    if (size.size() != 3)
        throw py::value_error(field_name(i) + " must have 3 values");
    return {index_field(size, 0, low), index_field(size, 1, low), index_field(size, 2, low)};
}

bool bool_field(const py::tuple& fields, std::size_t i) {
    const py::handle field = field_of(fields, i);
    if (!py::isinstance<py::bool_>(field))
        throw py::type_error(field_name(i) + " must be a bool");
    return field.ptr() == Py_True;
}

// Windows of a sound geometry end close to the padded input; those of an unsound one must at least not
// overflow.
void check_reach(const Size3& output, const Size3& stride, const Size3& kernel, const Size3& dilation) {
    for (int axis = 0; axis < 3; ++axis) {
        const Index steps = output[axis] - 1, taps = kernel[axis] - 1;
        if (steps > kReachLimit / stride[axis] || taps > kReachLimit / dilation[axis] ||
            steps * stride[axis] > kReachLimit - taps * dilation[axis])
            throw py::value_error("geometry: windows reach too far on axis " + std::to_string(axis));
    }
}

void check_field_count(const py::tuple& fields, std::size_t count) {
    if (fields.size() != count)
        throw py::value_error("geometry has " + std::to_string(fields.size()) + " fields, expected " +
                              std::to_string(count));
}

ConvGeometry conv_geometry(const py::tuple& fields) {
    check_field_count(fields, 10);
    const ConvGeometry g{index_field(fields, 0, 1), index_field(fields, 1, 1), index_field(fields, 2, 1),
                         index_field(fields, 3, 1), size_field(fields, 4, 1),  size_field(fields, 5, 1),
                         size_field(fields, 6, 1),  size_field(fields, 7, 1),  size_field(fields, 8, 1),
                         size_field(fields, 9, 0)};
    if (g.in_channels % g.groups != 0 || g.out_channels % g.groups != 0)
        throw py::value_error("geometry: channels are not multiples of groups");
    check_reach(g.output, g.stride, g.kernel, g.dilation);
    return g;
}

PoolGeometry pool_geometry(const py::tuple& fields) {
    check_field_count(fields, 11);
    const PoolGeometry g{index_field(fields, 0, 1), size_field(fields, 1, 1), size_field(fields, 2, 1),
                         size_field(fields, 3, 1),  size_field(fields, 4, 1), size_field(fields, 5, 1),
                         size_field(fields, 6, 0),  size_field(fields, 7, 0), bool_field(fields, 8),
                         bool_field(fields, 9),     int_field(fields, 10)};
    check_reach(g.output, g.stride, g.kernel, g.dilation);
    if (g.adaptive && g.dilation != Size3{1, 1, 1})
        throw py::value_error("geometry: adaptive windows have no dilation");
    return g;
}

// Few extents, kept without asking for memory.
class Shape {
public:
    Shape(std::initializer_list<Index> extents) : Shape(extents.begin(), extents.size()) {}
    Shape(const Index* extents, std::size_t count) : count_(count) {
        std::copy_n(extents, count, extents_.begin());
    }

    const Index* begin() const { return extents_.data(); }
    const Index* end() const { return begin() + count_; }
    Index operator[](std::size_t axis) const { return extents_[axis]; }

private:
    std::array<Index, 5> extents_{};
    std::size_t count_;
};

Shape shape_of(Index a, Index b, const Size3& size) {
    return {a, b, size[0], size[1], size[2]};
}
Shape shape_of(Index a, const Size3& size) {
    return {a, size[0], size[1], size[2]};
}

std::string text(const Index* extent, const Index* end) {
    std::string out = "(";
    for (; extent != end; ++extent)
        out += std::to_string(*extent) + ", ";
    return out + ")";
}

void check_array(const char* name, const py::array& array, const Shape& shape, bool written) {
    const py::ssize_t* got = array.shape();
    if (!std::equal(got, got + array.ndim(), shape.begin(), shape.end()))
        throw py::value_error(std::string(name) + " has shape " + text(got, got + array.ndim()) +
                              ", expected " + text(shape.begin(), shape.end()));
    if ((array.flags() & py::array::c_style) == 0)
        throw py::value_error(std::string(name) + " must be C-contiguous");
    const auto address = reinterpret_cast<std::uintptr_t>(array.data());
    if (address % static_cast<std::uintptr_t>(array.itemsize()) != 0)
        throw py::value_error(std::string(name) + " must be aligned");
    if (written && !array.writeable())
        throw py::value_error(std::string(name) + " is read-only");
}

template <class T>
bool has_type(const py::array& array) {
    const py::dtype dtype = array.dtype();
    if (dtype.num() == py::dtype::num_of<T>() && dtype.byteorder() == '=')
        return true;
    return py::isinstance<py::array_t<T>>(array); // the same by another name
}

template <class T>
const T* input(const char* name, const py::array& array, const Shape& shape) {
    if (!has_type<T>(array))
        throw py::type_error(std::string(name) + " differs in dtype from the other arrays");
    check_array(name, array, shape, false);
    return static_cast<const T*>(array.data());
}

template <class T>
T* output(const char* name, py::array& array, const Shape& shape) {
    if (!has_type<T>(array))
        throw py::type_error(std::string(name) + " differs in dtype from the other arrays");
    check_array(name, array, shape, true);
    return static_cast<T*>(array.mutable_data());
}

// An optional array as it is: a cast would convert what is no array into one that nobody keeps.
py::array as_array(const char* name, const py::object& object) {
    if (!py::isinstance<py::array>(object))
        throw py::type_error(std::string(name) + " must be an array or None");
    return py::reinterpret_borrow<py::array>(object);
}

template <class T>
const T* bias_data(const py::object& bias, Index channels) {
    return bias.is_none() ? nullptr : input<T>("bias", as_array("bias", bias), {channels});
}

Activation activation_of(int code) {
    if (code < 0 || code > static_cast<int>(Activation::silu))
        throw py::value_error("activation code " + std::to_string(code) + " is unknown");
    return static_cast<Activation>(code);
}

int checked_threads(int threads) {
    if (threads < 1 || threads > 1024)
        throw py::value_error("threads must lie in 1..1024, got " + std::to_string(threads));
    return threads;
}

Settings settings_of(int algorithm, int threads, std::optional<Index> workspace_limit) {
    if (algorithm < 0 || algorithm >= static_cast<int>(std::size(kAlgorithmNames)))
        throw py::value_error("algorithm code " + std::to_string(algorithm) + " is unknown");
    if (workspace_limit && *workspace_limit < 0)
        throw py::value_error("workspace_limit must not be negative, got " +
                              std::to_string(*workspace_limit));
    return {static_cast<Algorithm>(algorithm), checked_threads(threads), workspace_limit.value_or(kNoLimit)};
}

// Other Python threads run while a kernel does, where it takes longer than changing over to one of them.
class OthersRun {
public:
    explicit OthersRun(double multiply_adds)
        : state_(multiply_adds > kBrief ? PyEval_SaveThread() : nullptr) {}
    // An interpreter that has ended meanwhile does not let a thread back in, but unwinds it from here.
    ~OthersRun() noexcept(false) { // NOLINT(bugprone-unsafe-to-allow-exceptions)
        if (state_ != nullptr)
            PyEval_RestoreThread(state_);
    }
    OthersRun(const OthersRun&) = delete;
    OthersRun& operator=(const OthersRun&) = delete;

    static constexpr double kBrief = 1 << 14; // some microseconds, and one thread's work in every kernel

private:
    PyThreadState* const state_;
};

// Geometries from outside may have sizes whose product only a floating-point number can hold.
double product(const Size3& size) {
    return static_cast<double>(size[0]) * static_cast<double>(size[1]) * static_cast<double>(size[2]);
}

double work(const ConvGeometry& g) {
    const double planes = static_cast<double>(g.batch) * static_cast<double>(g.out_channels);
    const double inputs =
        planes * static_cast<double>(g.group_inputs()) * product(g.kernel) * product(g.output);
    return inputs + static_cast<double>(g.batch) * static_cast<double>(g.in_channels) * product(g.input);
}

double work(const PoolGeometry& g) {
    const double window = g.adaptive ? product(g.input) : product(g.kernel);
    return static_cast<double>(g.planes) * (product(g.input) + window * product(g.output));
}

// call(element) for a zero of the array's element type, one of those listed.
template <class... Ts, class Call>
void dispatch(const py::array& array, const Call& call) {
    bool found = false;
    ((!found && has_type<Ts>(array) ? (found = true, call(Ts{})) : void()), ...);
    if (!found)
        throw py::type_error("dtype " + py::str(array.dtype()).cast<std::string>() +
                             " is not supported here");
}

void bind_conv_forward(const py::array& x, const py::array& weight, const py::object& bias, int activation,
                       py::array y, const py::tuple& geometry, int algorithm, int threads,
                       std::optional<Index> workspace_limit) {
    const ConvGeometry g = conv_geometry(geometry);
    dispatch<float, double, std::int32_t, std::int64_t>(x, [&](auto zero) {
        using T = decltype(zero);
        const T* xs = input<T>("x", x, shape_of(g.batch, g.in_channels, g.input));
        const T* ws = input<T>("weight", weight, shape_of(g.out_channels, g.group_inputs(), g.kernel));
        const T* bs = bias_data<T>(bias, g.out_channels);
        T* ys = output<T>("y", y, shape_of(g.batch, g.out_channels, g.output));
        const Activation code = activation_of(activation);
        const Settings settings = settings_of(algorithm, threads, workspace_limit);
        const OthersRun release(work(g));
        conv_forward<T>(xs, ws, bs, code, ys, g, settings);
    });
}

void bind_conv_grad_input(const py::array& grad_y, const py::array& weight, const py::object& bias,
                          int activation, py::array grad_x, const py::tuple& geometry, int algorithm,
                          int threads, std::optional<Index> workspace_limit) {
    const ConvGeometry g = conv_geometry(geometry);
    dispatch<float, double, std::int32_t, std::int64_t>(grad_y, [&](auto zero) {
        using T = decltype(zero);
        const T* gs = input<T>("grad_y", grad_y, shape_of(g.batch, g.out_channels, g.output));
        const T* ws = input<T>("weight", weight, shape_of(g.out_channels, g.group_inputs(), g.kernel));
        const T* bs = bias_data<T>(bias, g.in_channels);
        T* xs = output<T>("grad_x", grad_x, shape_of(g.batch, g.in_channels, g.input));
        const Activation code = activation_of(activation);
        const Settings settings = settings_of(algorithm, threads, workspace_limit);
        const OthersRun release(work(g));
        conv_grad_input<T>(gs, ws, bs, code, xs, g, settings);
    });
}

void bind_conv_grad_weight(const py::array& x, const py::array& grad_y, py::array grad_weight,
                           const py::tuple& geometry, int algorithm, int threads,
                           std::optional<Index> workspace_limit) {
    const ConvGeometry g = conv_geometry(geometry);
    dispatch<float, double, std::int32_t, std::int64_t>(x, [&](auto zero) {
        using T = decltype(zero);
        const T* xs = input<T>("x", x, shape_of(g.batch, g.in_channels, g.input));
        const T* gs = input<T>("grad_y", grad_y, shape_of(g.batch, g.out_channels, g.output));
        T* ws = output<T>("grad_weight", grad_weight, shape_of(g.out_channels, g.group_inputs(), g.kernel));
        const Settings settings = settings_of(algorithm, threads, workspace_limit);
        const OthersRun release(work(g));
        conv_grad_weight<T>(xs, gs, ws, g, settings);
    });
}

// A plan of any element type.
class AnyConvPlan {
public:
    AnyConvPlan() = default;
    virtual ~AnyConvPlan() = default;
    AnyConvPlan(const AnyConvPlan&) = delete;
    AnyConvPlan& operator=(const AnyConvPlan&) = delete;

    virtual void run(const py::array& source, py::array& result, int threads) const = 0;
    virtual Algorithm algorithm() const = 0;
    virtual std::size_t bytes() const = 0;
};

template <class T>
class TypedConvPlan final : public AnyConvPlan {
public:
    TypedConvPlan(bool forward, const T* weight, const T* bias, Activation activation, const ConvGeometry& g,
                  const Settings& settings)
        : plan_(forward, weight, bias, activation, g, settings) {}

    void run(const py::array& source, py::array& result, int threads) const override {
        const ConvGeometry& g = plan_.geometry();
        const Shape x = shape_of(g.batch, g.in_channels, g.input);
        const Shape y = shape_of(g.batch, g.out_channels, g.output);
        const T* from = input<T>("source", source, plan_.forward() ? x : y);
        T* to = output<T>("result", result, plan_.forward() ? y : x);
        const int count = checked_threads(threads);
        const OthersRun release(work(g));
        plan_.run(from, to, count);
    }
    Algorithm algorithm() const override { return plan_.algorithm(); }
    std::size_t bytes() const override { return plan_.bytes(); }

private:
    const ConvPlan<T> plan_;
};

std::unique_ptr<AnyConvPlan> conv_plan(const std::string& kernel, const py::array& weight,
                                       const py::object& bias, int activation, const py::tuple& geometry,
                                       int algorithm, int threads, std::optional<Index> workspace_limit) {
    const ConvGeometry g = conv_geometry(geometry);
    if (kernel != "conv_forward" && kernel != "conv_grad_input")
        throw py::value_error("kernel '" + kernel + "' has no plan");
    const bool forward = kernel == "conv_forward";
    const double planes =
        static_cast<double>(g.batch) * std::max(static_cast<double>(g.in_channels) * product(g.input),
                                                static_cast<double>(g.out_channels) * product(g.output));
    if (planes > kMostPlanned)
        throw std::bad_alloc();
    std::unique_ptr<AnyConvPlan> plan;
    dispatch<float, double, std::int32_t, std::int64_t>(weight, [&](auto zero) {
        using T = decltype(zero);
        const T* ws = input<T>("weight", weight, shape_of(g.out_channels, g.group_inputs(), g.kernel));
        const T* bs = bias_data<T>(bias, forward ? g.out_channels : g.in_channels);
        const Activation code = activation_of(activation);
        const Settings settings = settings_of(algorithm, threads, workspace_limit);
        const OthersRun release(work(g));
        plan = std::make_unique<TypedConvPlan<T>>(forward, ws, bs, code, g, settings);
    });
    return plan;
}

bool is_narrow(const py::dtype& dtype) {
    const auto name = dtype.attr("name").cast<std::string>();
    return name == "float16" || name == "bfloat16";
}

NarrowType narrow_type(const std::string& name) {
    if (name != "float16" && name != "bfloat16")
        throw py::value_error("type must be 'float16' or 'bfloat16', got '" + name + "'");
    return name == "float16" ? NarrowType::float16 : NarrowType::bfloat16;
}

// The kernels on arrays of uint16, which hold the bits of numbers of `type`.
void bind_narrow_conv_forward(const std::string& type, const py::array& x, const py::array& weight,
                              const py::object& bias, int activation, py::array y, const py::tuple& geometry,
                              int algorithm, int threads, std::optional<Index> workspace_limit) {
    const ConvGeometry g = conv_geometry(geometry);
    const auto* xs = input<Narrow>("x", x, shape_of(g.batch, g.in_channels, g.input));
    const auto* ws = input<Narrow>("weight", weight, shape_of(g.out_channels, g.group_inputs(), g.kernel));
    const auto* bs = bias_data<Narrow>(bias, g.out_channels);
    auto* ys = output<Narrow>("y", y, shape_of(g.batch, g.out_channels, g.output));
    const NarrowType kind = narrow_type(type);
    const Activation code = activation_of(activation);
    const Settings settings = settings_of(algorithm, threads, workspace_limit);
    const OthersRun release(work(g));
    narrow_conv_forward(kind, xs, ws, bs, code, ys, g, settings);
}

void bind_narrow_conv_grad_input(const std::string& type, const py::array& grad_y, const py::array& weight,
                                 const py::object& bias, int activation, py::array grad_x,
                                 const py::tuple& geometry, int algorithm, int threads,
                                 std::optional<Index> workspace_limit) {
    const ConvGeometry g = conv_geometry(geometry);
    const auto* gs = input<Narrow>("grad_y", grad_y, shape_of(g.batch, g.out_channels, g.output));
    const auto* ws = input<Narrow>("weight", weight, shape_of(g.out_channels, g.group_inputs(), g.kernel));
    const auto* bs = bias_data<Narrow>(bias, g.in_channels);
    auto* xs = output<Narrow>("grad_x", grad_x, shape_of(g.batch, g.in_channels, g.input));
    const NarrowType kind = narrow_type(type);
    const Activation code = activation_of(activation);
    const Settings settings = settings_of(algorithm, threads, workspace_limit);
    const OthersRun release(work(g));
    narrow_conv_grad_input(kind, gs, ws, bs, code, xs, g, settings);
}

void bind_narrow_conv_grad_weight(const std::string& type, const py::array& x, const py::array& grad_y,
                                  py::array grad_weight, const py::tuple& geometry, int algorithm,
                                  int threads, std::optional<Index> workspace_limit) {
    const ConvGeometry g = conv_geometry(geometry);
    const auto* xs = input<Narrow>("x", x, shape_of(g.batch, g.in_channels, g.input));
    const auto* gs = input<Narrow>("grad_y", grad_y, shape_of(g.batch, g.out_channels, g.output));
    auto* ws =
        output<Narrow>("grad_weight", grad_weight, shape_of(g.out_channels, g.group_inputs(), g.kernel));
    const NarrowType kind = narrow_type(type);
    const Settings settings = settings_of(algorithm, threads, workspace_limit);
    const OthersRun release(work(g));
    narrow_conv_grad_weight(kind, xs, gs, ws, g, settings);
}

// The algorithm that a kernel would run for these settings and, by their names, all that could serve the
// geometry: the time that the model expects, in multiply-adds, multiplications, bytes of workspace, threads,
// and whether the workspace is within the limit.
py::tuple explain_conv(const std::string& kernel, const py::dtype& dtype, const py::tuple& geometry,
                       int algorithm, int threads, std::optional<Index> workspace_limit) {
    const ConvGeometry g = conv_geometry(geometry);
    if (work(g) > kMostExplained)
        throw py::value_error("geometry: there are too many products");
    const Settings settings = settings_of(algorithm, threads, workspace_limit);
    Choice choice;
    const auto explain_by = [&](auto zero) -> ExplainConv {
        using T = decltype(zero);
        if (kernel == "conv_forward")
            return explain_conv_forward<T>;
        if (kernel == "conv_grad_input")
            return explain_conv_grad_input<T>;
        if (kernel == "conv_grad_weight")
            return explain_conv_grad_weight<T>;
        throw py::value_error("kernel '" + kernel + "' is unknown");
    };
    if (is_narrow(dtype))
        choice = explain_narrow(explain_by(float{}), g, settings);
    else
        dispatch<float, double, std::int32_t, std::int64_t>(
            py::array(dtype, 0), [&](auto zero) { choice = explain_by(zero)(g, settings); });
    py::dict candidates;
    for (const Candidate& c : choice.candidates)
        candidates[kAlgorithmNames[static_cast<int>(c.algorithm)]] = py::make_tuple(
            c.estimate.time, c.estimate.multiplications, c.estimate.workspace, c.estimate.threads, c.fits);
    return py::make_tuple(kAlgorithmNames[static_cast<int>(choice.algorithm)], candidates);
}

void bind_max_pool(const py::array& x, py::array y, const py::object& indices, const py::tuple& geometry,
                   int threads) {
    const PoolGeometry g = pool_geometry(geometry);
    dispatch<float, double, std::int8_t, std::int16_t, std::int32_t, std::int64_t, std::uint8_t,
             std::uint16_t, std::uint32_t, std::uint64_t>(x, [&](auto zero) {
        using T = decltype(zero);
        const T* xs = input<T>("x", x, shape_of(g.planes, g.input));
        T* ys = output<T>("y", y, shape_of(g.planes, g.output));
        Index* where = nullptr;
        if (!indices.is_none()) {
            py::array array = as_array("indices", indices);
            where = output<Index>("indices", array, shape_of(g.planes, g.output));
        }
        const int count = checked_threads(threads);
        const OthersRun release(work(g));
        max_pool<T>(xs, ys, where, g, count);
    });
}

Index bind_max_pool_grad_input(const py::array& grad_y, const py::array& indices, py::array grad_x,
                               int threads) {
    if (grad_y.ndim() != 4 || grad_x.ndim() != 4 || grad_y.shape(0) != grad_x.shape(0))
        throw py::value_error("grad_y and grad_x must be 4-D with as many planes each");
    const Shape outputs(grad_y.shape(), 4), inputs(grad_x.shape(), 4);
    if (grad_y.size() == 0 || grad_x.size() == 0)
        throw py::value_error("grad_y and grad_x must not be empty");
    Index bad = -1;
    dispatch<float, double>(grad_y, [&](auto zero) {
        using T = decltype(zero);
        const T* gs = input<T>("grad_y", grad_y, outputs);
        const Index* where = input<Index>("indices", indices, outputs);
        T* xs = output<T>("grad_x", grad_x, inputs);
        const int count = checked_threads(threads);
        const OthersRun release(static_cast<double>(grad_y.size()) + static_cast<double>(grad_x.size()));
        bad = max_pool_grad_input<T>(gs, where, xs, outputs[0], outputs[1] * outputs[2] * outputs[3],
                                     inputs[1] * inputs[2] * inputs[3], count);
    });
    return bad;
}

void bind_avg_pool(const py::array& x, py::array y, const py::tuple& geometry, int threads) {
    const PoolGeometry g = pool_geometry(geometry);
    dispatch<float, double>(x, [&](auto zero) {
        using T = decltype(zero);
        const T* xs = input<T>("x", x, shape_of(g.planes, g.input));
        T* ys = output<T>("y", y, shape_of(g.planes, g.output));
        const int count = checked_threads(threads);
        const OthersRun release(work(g));
        avg_pool<T>(xs, ys, g, count);
    });
}

void bind_avg_pool_grad_input(const py::array& grad_y, py::array grad_x, const py::tuple& geometry,
                              int threads) {
    const PoolGeometry g = pool_geometry(geometry);
    dispatch<float, double>(grad_y, [&](auto zero) {
        using T = decltype(zero);
        const T* gs = input<T>("grad_y", grad_y, shape_of(g.planes, g.output));
        T* xs = output<T>("grad_x", grad_x, shape_of(g.planes, g.input));
        const int count = checked_threads(threads);
        const OthersRun release(work(g));
        avg_pool_grad_input<T>(gs, xs, g, count);
    });
}

double bind_fma_peak(const std::string& dtype, int threads) {
    const int count = checked_threads(threads);
    if (dtype != "float32" && dtype != "float64")
        throw py::value_error("fma_peak: dtype must be 'float32' or 'float64', got '" + dtype + "'");
    const OthersRun release(2 * OthersRun::kBrief);
    return dtype == "float32" ? fma_peak<float>(count) : fma_peak<double>(count);
}

// An array in a buffer that is on loan until the last view of the array dies.
py::array empty(const std::vector<py::ssize_t>& shape, const py::dtype& dtype) {
    if (dtype.attr("hasobject").cast<bool>())
        throw py::type_error("dtype must not hold objects");
    auto bytes = static_cast<std::size_t>(dtype.itemsize());
    for (const py::ssize_t n : shape) {
        if (n < 0)
            throw py::value_error("shape must not be negative, got " +
                                  text(shape.data(), shape.data() + shape.size()));
        if (n != 0 && bytes > static_cast<std::size_t>(PTRDIFF_MAX) / static_cast<std::size_t>(n))
            throw std::bad_alloc();
        bytes *= static_cast<std::size_t>(n);
    }
    auto loan = std::make_unique<Loan>(bytes);
    void* const data = loan->memory.data();
    const py::capsule owner(loan.get(), [](void* pointer) { delete static_cast<Loan*>(pointer); });
    [[maybe_unused]] const Loan* const owned = loan.release();
    return py::array(dtype, shape, data, owner);
}

py::tuple available_isas() {
    py::list names;
    for (int i = 0; i < tile_set_count(); ++i)
        names.append(tile_set_name(i));
    return py::tuple(names);
}

void set_isa(const std::string& name) {
    if (name.find('\0') == std::string::npos && select_tile_set(name.c_str()))
        return;
    std::string known;
    for (int i = 0; i < tile_set_count(); ++i)
        known += std::string(i == 0 ? "" : ", ") + tile_set_name(i);
    throw py::value_error("instruction set '" + name + "' is not available here, expected one of: " + known);
}

} // namespace
} // namespace fastconv

PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
    using namespace fastconv;
    m.doc() = "Compiled kernels of fastconv; see fastconv.backends.protocol for their contract.";
    main_thread = py::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();
    Parallel::set_interrupt_check(check_interrupt);
    py::register_local_exception_translator([](std::exception_ptr thrown) {
        try {
            std::rethrow_exception(std::move(thrown));
        } catch (const WorkspaceError& error) {
            PyErr_SetString(PyExc_MemoryError, error.what());
        }
    });
    m.def("conv_forward", &bind_conv_forward, py::arg("x"), py::arg("weight"), py::arg("bias").none(true),
          py::arg("activation"), py::arg("y"), py::arg("geometry"), py::arg("algorithm"), py::arg("threads"),
          py::arg("workspace_limit").none(true));
    m.def("conv_grad_input", &bind_conv_grad_input, py::arg("grad_y"), py::arg("weight"),
          py::arg("bias").none(true), py::arg("activation"), py::arg("grad_x"), py::arg("geometry"),
          py::arg("algorithm"), py::arg("threads"), py::arg("workspace_limit").none(true));
    m.def("conv_grad_weight", &bind_conv_grad_weight, py::arg("x"), py::arg("grad_y"), py::arg("grad_weight"),
          py::arg("geometry"), py::arg("algorithm"), py::arg("threads"),
          py::arg("workspace_limit").none(true));
    m.def("narrow_conv_forward", &bind_narrow_conv_forward, py::arg("type"), py::arg("x"), py::arg("weight"),
          py::arg("bias").none(true), py::arg("activation"), py::arg("y"), py::arg("geometry"),
          py::arg("algorithm"), py::arg("threads"), py::arg("workspace_limit").none(true));
    m.def("narrow_conv_grad_input", &bind_narrow_conv_grad_input, py::arg("type"), py::arg("grad_y"),
          py::arg("weight"), py::arg("bias").none(true), py::arg("activation"), py::arg("grad_x"),
          py::arg("geometry"), py::arg("algorithm"), py::arg("threads"),
          py::arg("workspace_limit").none(true));
    m.def("narrow_conv_grad_weight", &bind_narrow_conv_grad_weight, py::arg("type"), py::arg("x"),
          py::arg("grad_y"), py::arg("grad_weight"), py::arg("geometry"), py::arg("algorithm"),
          py::arg("threads"), py::arg("workspace_limit").none(true));
    m.def("max_pool", &bind_max_pool, py::arg("x"), py::arg("y"), py::arg("indices").none(true),
          py::arg("geometry"), py::arg("threads"));
    m.def("max_pool_grad_input", &bind_max_pool_grad_input, py::arg("grad_y"), py::arg("indices"),
          py::arg("grad_x"), py::arg("threads"));
    m.def("avg_pool", &bind_avg_pool, py::arg("x"), py::arg("y"), py::arg("geometry"), py::arg("threads"));
    m.def("avg_pool_grad_input", &bind_avg_pool_grad_input, py::arg("grad_y"), py::arg("grad_x"),
          py::arg("geometry"), py::arg("threads"));
    py::class_<AnyConvPlan>(py::handle(), "ConvPlan") // which only conv_plan makes
        .def("run", &AnyConvPlan::run, py::arg("source"), py::arg("result"), py::arg("threads"))
        .def_property_readonly(
            "algorithm",
            [](const AnyConvPlan& plan) { return kAlgorithmNames[static_cast<int>(plan.algorithm())]; })
        .def_property_readonly("bytes", &AnyConvPlan::bytes);
    m.def("conv_plan", &conv_plan, py::arg("kernel"), py::arg("weight"), py::arg("bias").none(true),
          py::arg("activation"), py::arg("geometry"), py::arg("algorithm"), py::arg("threads"),
          py::arg("workspace_limit").none(true));
    m.def("explain_conv", &explain_conv, py::arg("kernel"), py::arg("dtype"), py::arg("geometry"),
          py::arg("algorithm"), py::arg("threads"), py::arg("workspace_limit").none(true));
    m.def("algorithms", [] {
        return py::tuple(
            py::cast(std::vector<std::string>(std::begin(kAlgorithmNames), std::end(kAlgorithmNames))));
    });
    m.def("fma_peak", &bind_fma_peak, py::arg("dtype"), py::arg("threads"));
    m.def("empty", &empty, py::arg("shape"), py::arg("dtype"));
    m.def(
        "set_cache_limit", [](std::size_t bytes) { BufferPool::instance().set_limit(bytes); },
        py::arg("bytes"));
    m.def("cache_limit", [] { return BufferPool::instance().limit(); });
    m.def("cached_bytes", [] { return BufferPool::instance().idle_bytes(); });
    m.def("workspace_bytes", &total_workspace_bytes);
    m.def("clear_cache", [] {
        const OthersRun release(2 * OthersRun::kBrief);
        return BufferPool::instance().clear() + release_workspaces();
    });
    m.def("set_poison", [](bool poison) { BufferPool::instance().set_poison(poison); }, py::arg("poison"));
    m.def("available_isas", &available_isas);
    m.def("get_isa", [] { return std::string(tile_set().name); });
    m.def("set_isa", &set_isa, py::arg("name"));
    m.def("use_openmp", &Parallel::use_openmp, py::arg("use"));
    m.def("parallel_description", &Parallel::description);
    m.def("compiler", [] { return std::string(__VERSION__); });
}

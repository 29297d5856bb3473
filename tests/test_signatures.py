"""The public functions have the parameters that the documentation promises, in that order."""

import inspect

import numpy as np
import pytest

import fastconv

CONV = "input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1"
CONV_TRANSPOSE = "input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1"
WINDOW = "kernel_size, stride=None, padding=0"

# Those before the star are positional, in this order; keywords after it may stand in any order and be more.
SIGNATURES = {
    "convNd": f"{CONV}, *, padding_mode='zeros', activation=None, out=None, backend=None",
    "conv_transposeNd": f"{CONV_TRANSPOSE}, *, output_size=None, activation=None, out=None, backend=None",
    "convNd_backward": "grad_output, input, weight, *, stride=1, padding=0, dilation=1, groups=1, "
    "padding_mode='zeros', output_mask=(True, True, True), backend=None",
    "conv_transposeNd_backward": "grad_output, input, weight, *, stride=1, padding=0, output_padding=0, "
    "dilation=1, groups=1, output_mask=(True, True, True), backend=None",
    "max_poolNd": f"input, {WINDOW}, dilation=1, ceil_mode=False, return_indices=False, *, "
    "out=None, backend=None",
    "max_poolNd_backward": "grad_output, indices, input_size, *, out=None, backend=None",
    "max_unpoolNd": f"input, indices, {WINDOW}, output_size=None, *, out=None, backend=None",
    "avg_poolNd": f"input, {WINDOW}, ceil_mode=False, count_include_pad=True, divisor_override=None, *, "
    "dilation=1, out=None, backend=None",
    "avg_poolNd_backward": f"grad_output, input_size, {WINDOW}, ceil_mode=False, count_include_pad=True, "
    "divisor_override=None, *, dilation=1, out=None, backend=None",
    "lp_poolNd": "input, norm_type, kernel_size, stride=None, ceil_mode=False, *, padding=0, dilation=1, "
    "out=None, backend=None",
    "lp_poolNd_backward": "grad_output, input, norm_type, kernel_size, stride=None, ceil_mode=False, *, "
    "padding=0, dilation=1, out=None, backend=None",
    "adaptive_avg_poolNd": "input, output_size, *, out=None, backend=None",
    "adaptive_avg_poolNd_backward": "grad_output, input_size, *, out=None, backend=None",
    "adaptive_max_poolNd": "input, output_size, return_indices=False, *, out=None, backend=None",
    "unfold": "input, kernel_size, dilation=1, padding=0, stride=1, *, out=None, backend=None",
    "fold": "input, output_size, kernel_size, dilation=1, padding=0, stride=1, *, out=None, backend=None",
    "grad.convNd_input": "input_size, weight, grad_output, stride=1, padding=0, dilation=1, groups=1, *, "
    "out=None, backend=None",
    "grad.convNd_weight": "input, weight_size, grad_output, stride=1, padding=0, dilation=1, groups=1, *, "
    "out=None, backend=None",
}
NAMES = [
    name.replace("Nd", f"{ndim}d") for name in SIGNATURES for ndim in ((1, 2, 3) if "Nd" in name else (0,))
]


def find(name):
    module, _, function = name.rpartition(".")
    return getattr(getattr(fastconv, module) if module else fastconv, function)


@pytest.mark.parametrize("name", NAMES)
def test_signature(name):
    template = name if name in SIGNATURES else "".join("N" if c in "123" else c for c in name)
    namespace = {}
    exec(f"def wanted({SIGNATURES[template]}): ...", namespace)
    wanted = inspect.signature(namespace["wanted"]).parameters.values()
    found = inspect.signature(find(name)).parameters

    def positional(parameters):
        return [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

    assert positional(found.values()) == positional(wanted)
    for parameter in wanted:
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert found[parameter.name].kind is parameter.KEYWORD_ONLY
            assert found[parameter.name].default == parameter.default


@pytest.mark.parametrize("name", NAMES)
def test_calls_that_do_not_fit_the_signature(name):
    """The message has the public name and counts what the caller passed."""
    function = find(name)
    parameters = inspect.signature(function).parameters.values()
    required = sum(parameter.default is parameter.empty for parameter in parameters)
    with pytest.raises(TypeError, match=rf"^{function.__name__}(: |\(\) )missing .*argument"):
        function()
    with pytest.raises(
        TypeError, match=rf"^{function.__name__}(: |\(\) ).*unexpected keyword argument 'sizes'"
    ):
        function(*[1] * required, sizes=1)
    with pytest.raises(
        TypeError, match=rf"^{function.__name__}(: too many positional|\(\) takes .* 20 were given)"
    ):
        function(*[1] * 20)


def test_errors_from_within_a_call_stay_as_they_are():
    with pytest.raises(TypeError, match=r"^max_pool2d: kernel_size must be an int, got None$") as caught:
        fastconv.max_pool2d(np.ones((1, 4, 4)), None)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", NAMES)
def test_documentation(name):
    function = find(name)
    text = inspect.getdoc(function)
    assert function.__name__ == name.rpartition(".")[2]
    assert "Nd" not in text
    for section in ("Parameters\n-", "Returns\n-", "Raises\n-"):
        assert section in text
    documented = text[text.index("Parameters\n-") : text.index("Returns\n-")]
    assert any(word in documented for word in ("dtype", "float64", "promote", "Floating types"))
    for parameter in inspect.signature(function).parameters:
        assert parameter in documented, f"{name} does not document {parameter}"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("available_backends", ""),
        ("clear_cache", ""),
        ("config_context", "*, threads=None, algorithm=None, workspace_limit=None, deterministic=None"),
        ("explain", "op, *arguments, dtype='float32', backend=None, measure=False, **parameters"),
        ("get_num_threads", ""),
        ("set_backend", "name"),
        ("set_num_threads", "n"),
        ("show_config", "mode='stdout'"),
        ("use_backend", "name"),
    ],
)
def test_signatures_of_settings(name, parameters):
    found = inspect.signature(find(name)).parameters.values()
    bare = inspect.Signature([p.replace(annotation=p.empty) for p in found])
    assert str(bare) == f"({parameters})"
    assert name in fastconv.__all__


def test_every_operation_is_listed_and_public():
    operations = {name for name in NAMES if not name.startswith("grad.")}
    assert operations <= set(fastconv.__all__)
    for name in fastconv.__all__:
        assert getattr(fastconv, name) is not None

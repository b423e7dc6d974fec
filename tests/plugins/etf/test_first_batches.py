"""A first batch of anything: heads train on from it, say so, and keep nothing that is no number."""

import warnings

import pytest
import torch
from ddnkit_etf import ClassMeans, FixedETFClassifier, NearestETFClassifier, StandardClassifier
from ddnkit_manifolds import Procrustes
from steps import losses_of_steps
from torch import nn

from ddnkit import DdnkitWarning, InputError, registry

CLASSES = 4
N = 9
SETTINGS = {
    "as they are": {},
    "of classes": {"centre": "classes", "means": {"weight": "samples"}, "initial": "haar"},
    "as the code": {"centre": "none", "means": {"absent": "global_mean"}},
    "as the text": {"means": {"normalise": "before", "absent": "zero", "weight": "samples"}},
    "weighted code": {"means": {"absent": "global_mean", "weight": "samples"}},
    "every batch anew": {"means": {"alpha": 1.0}, "differentiate": False},
    "by products": {"solver": Procrustes("products")},
    "without δ": {"delta": 0.0},
    "batch norm": {"batch_norm": "affine"},
}


def first_batch(kind, d, dtype=torch.float32):
    """Features (N, d) and labels that leave the nearest ETF open, in the ways there are."""
    one = torch.randn(1, d, dtype=dtype)
    apart = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2])
    half = torch.randn(4, d, dtype=dtype)
    return {
        "one class": (torch.randn(N, d, dtype=dtype), torch.zeros(N, dtype=torch.long)),
        "one sample": (one, torch.tensor([1])),
        "equal": (one.expand(N, d).clone(), apart),
        # 0.1 is no number of the machine: nine of them do not add up to 0.9
        "tenths": (torch.full((N, d), 0.1, dtype=dtype), apart),
        "zero": (torch.zeros(N, d, dtype=dtype), apart),
        "cancelling": (torch.cat([half, -half]), torch.arange(4).repeat(2) % 3),
        "shares": (torch.randn(N, d, dtype=dtype), torch.full((N, CLASSES), 1 / 3, dtype=dtype)),
    }[kind]


KINDS = ["one class", "one sample", "equal", "tenths", "zero", "cancelling", "shares"]


def head_of(d, dtype, settings):
    if dtype == torch.float64 and settings.get("solver") is not None:
        pytest.skip("products are for float32")
    return NearestETFClassifier(d, CLASSES, **settings).to(dtype)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(
    ("d", "dtype"),
    [
        (16, torch.float32),
        (3, torch.float64),
        pytest.param(3, torch.float32, marks=pytest.mark.long),
        pytest.param(4, torch.float32, marks=pytest.mark.long),
        pytest.param(4, torch.float64, marks=pytest.mark.long),
        pytest.param(16, torch.float64, marks=pytest.mark.long),
    ],
)
@pytest.mark.covering
def test_the_nearest_head_trains_on_from_any_first_batch(settings, d, dtype):
    given = SETTINGS[settings]
    for kind in KINDS:
        if kind == "one sample" and "batch_norm" in given:
            continue
        head = head_of(d, dtype, given)
        start = head.weight.clone()
        features, labels = first_batch(kind, d, dtype)
        features.requires_grad_()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                logits = head(features, labels)
        said = [w for w in caught if issubclass(w.category, DdnkitWarning)]
        assert len(said) == len(caught) == (not head.started)  # once, where nothing is known
        if not head.started:
            # U = P is solved for, in d·C numbers, each of size 1 at most; the start is of float32.
            assert (head.weight - start).norm() < 16 * torch.finfo(torch.float32).eps * d * CLASSES
        assert logits.isfinite().all()
        (logits * torch.randn_like(logits)).sum().backward()
        assert features.grad.isfinite().all()
        assert all(b.isfinite().all() for b in head.buffers())
        # Then an ordinary one, which starts it.
        features = torch.randn(12, d, dtype=dtype, requires_grad=True)
        logits = head(features, torch.arange(12) % CLASSES)
        assert head.started
        assert logits.isfinite().all()
        logits.square().sum().backward()
        assert features.grad.isfinite().all()
        assert head.certificate.solved.all()


def test_after_a_batch_that_says_nothing_the_next_one_is_the_first():
    plain, late = NearestETFClassifier(8, CLASSES), NearestETFClassifier(8, CLASSES)
    with pytest.warns(DdnkitWarning):
        late(*first_batch("tenths", 8))
    features, labels = torch.randn(12, 8), torch.arange(12) % CLASSES
    # The mean h_G has seen another batch; W has not.
    for head in (plain, late):
        head(features, labels)
    torch.testing.assert_close(late.weight, plain.weight)
    torch.testing.assert_close(late.tracker.counts, plain.tracker.counts)


@pytest.mark.parametrize("kind", ["one class", "tenths"])
def test_what_is_undetermined_passes_no_gradient_and_the_logits_do(kind):
    head = NearestETFClassifier(8, CLASSES).double()
    features, labels = first_batch(kind, 8, torch.float64)
    V = torch.randn(N, CLASSES, dtype=torch.float64)
    features.requires_grad_()
    with pytest.warns(DdnkitWarning):
        (head(features, labels) * V).sum().backward()
    alone = features.detach().requires_grad_()
    unit = nn.functional.normalize(alone, dim=1)
    (5 * (unit - unit.mean(0)) @ head.classifier().T * V).sum().backward()
    torch.testing.assert_close(features.grad, alone.grad)


def test_means_that_are_rounding_count_as_zero_and_small_ones_do_not():
    # Features of equal direction and classes that are 1e-4 apart: 500 times what rounding does.
    labels = torch.arange(64) % CLASSES
    base = nn.functional.normalize(torch.randn(1, 16), dim=1).expand(64, 16)
    means = ClassMeans(16, CLASSES)
    assert not means(base, labels).any()
    assert not means.determined
    small = base + 1e-4 * nn.functional.one_hot(labels, 16)
    H = means(small, labels)
    assert means.determined
    exact = ClassMeans(16, CLASSES).double()(small.double(), labels)
    # A class mean's 16 terms and its difference: u·√16 for each of 4 means of length 1, twice, over
    # the size 1e-4·√3 of the centred means, times 8 standard deviations.
    bound = 8 * 2 * (2**-24 * 4 * 2) / (1e-4 * 3**0.5)
    assert (H - exact).norm() < bound


def test_the_scale_of_the_features_does_not_matter():
    features, labels = torch.full((N, 8), 0.1), torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2])
    for scale in (1e-12, 1e12):
        means = ClassMeans(8, CLASSES)
        means(scale * features, labels)
        assert not means.determined
        H = means(scale * torch.randn(N, 8), labels)
        assert means.determined
        # A norm of 32 squares and a division
        assert abs(float(H.norm()) - 1) < 32 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("settings", ["as they are", "by products", "as the text"])
def test_features_that_are_no_numbers_show_and_leave_no_trace(first, settings):
    head = NearestETFClassifier(8, CLASSES, **SETTINGS[settings])
    ordinary = torch.randn(12, 8), torch.arange(12) % CLASSES
    if not first:
        head(*ordinary)
    before = {k: v.clone() for k, v in head.state_dict().items() if torch.is_tensor(v)}
    features = torch.randn(12, 8)
    features[5, 3] = torch.nan
    logits = head(features.requires_grad_(), ordinary[1])
    assert logits.isnan().any(dim=1).all()
    for key, value in before.items():
        assert torch.equal(head.state_dict()[key], value), key
    assert head(*ordinary).isfinite().all()
    assert head.started


def losses_after(first, **settings):
    torch.manual_seed(1)
    d = 16
    head = NearestETFClassifier(d, CLASSES, **settings)
    backbone = nn.Linear(32, d)
    x, labels = torch.randn(32, 32), torch.arange(CLASSES).repeat(8)
    if first is not None:
        features, given = first_batch(first, d)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DdnkitWarning)
            head(features, given)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1.0)
    losses = [float(loss) for loss in losses_of_steps(head, backbone, optimizer, x, labels)]
    return losses


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_after_it_the_loss_is_that_of_any_other_start(kind):
    usual, found = losses_after(None), losses_after(kind)
    # W has seen the same batches; h_G is of the batch at hand: the same to rounding, which steps of
    # length 1 may enlarge, and half the way down is the same kind of loss.
    assert usual[-1] < 0.8 * usual[0]
    assert abs(found[-1] - usual[-1]) < 0.1 * (usual[0] - usual[-1])


def test_bfloat16_features():
    head = NearestETFClassifier(8, CLASSES)
    features, labels = first_batch("tenths", 8)
    features = features.bfloat16().requires_grad_()
    with pytest.warns(DdnkitWarning), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(features, labels)
    logits.square().sum().backward()
    assert features.grad.isfinite().all()


HEADS = [
    ("standard", {}),
    ("standard", {"centre": True}),
    ("standard_unnormalised", {}),
    ("fixed_etf", {}),
    ("fixed_etf", {"batch_norm": "plain"}),
    ("nearest_etf", {}),
    ("nearest_etf", {"centre": "classes"}),
    ("batch_norm_etf", {}),
    ("batch_norm_etf", {"batch_norm": "none"}),
]


@pytest.mark.parametrize(("name", "settings"), HEADS)
def test_every_head_takes_an_empty_batch_and_one_sample(name, settings):
    head = registry.get("heads", name)(**settings).build(feature_dim=8, classes=CLASSES)
    before = {k: v.clone() for k, v in head.state_dict().items() if torch.is_tensor(v)}
    assert head(torch.zeros(0, 8), torch.zeros(0, dtype=torch.long)).shape == (0, CLASSES)
    for key, value in before.items():
        assert torch.equal(head.state_dict()[key], value), key
    assert head.eval()(torch.zeros(0, 8)).shape == (0, CLASSES)
    head.train()
    one = torch.randn(1, 8, requires_grad=True), torch.tensor([2])
    if head.norm is not None:
        with pytest.raises(InputError, match="sample"):
            head(*one)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DdnkitWarning)
        logits = head(*one)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    assert one[0].grad.isfinite().all()


@pytest.mark.parametrize(("name", "settings"), HEADS)
@pytest.mark.parametrize("kind", ["equal", "zero"])
def test_every_head_takes_equal_and_zero_features(kind, name, settings):
    head = registry.get("heads", name)(**settings).build(feature_dim=8, classes=CLASSES)
    features, labels = first_batch(kind, 8)
    features.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DdnkitWarning)
        nn.functional.cross_entropy(head(features, labels), labels).backward()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (torch.randn(3, 8), torch.tensor([0, 1, 4])),
        (torch.randn(3, 8), torch.tensor([0, 1])),
        (torch.randn(3, 8), torch.zeros(3)),
        (torch.randn(3, 8), torch.zeros(3, CLASSES - 1)),
        (torch.randn(3, 7), torch.tensor([0, 1, 2])),
        (torch.randn(3, 2, 8), torch.tensor([0, 1, 2])),
    ],
)
def test_labels_and_features_of_the_wrong_kind_are_refused(features, labels):
    head = NearestETFClassifier(8, CLASSES)
    with pytest.raises(InputError):
        head(features, labels)
    assert not head.tracker.counts.any()


@pytest.mark.parametrize("kind", [NearestETFClassifier, FixedETFClassifier])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("size", [0.0, 1e-20])
def test_a_feature_without_a_direction_has_no_gradient(kind, dtype, size):
    """Not one of 1e12, which ends a training; the others have theirs."""
    torch.manual_seed(0)
    features = torch.randn(8, 16, dtype=dtype)
    features[3] *= size
    features.requires_grad_()
    labels = torch.arange(8) % 4
    head = kind(16, 4).to(torch.float64 if dtype == torch.float64 else torch.float32)
    logits = head(features, labels)
    torch.nn.functional.cross_entropy(logits.float(), labels).backward()
    rows = features.grad.norm(dim=-1)
    assert rows[3] == 0
    assert (rows[[0, 1, 2, 4, 5, 6, 7]] > 0).all() and rows.isfinite().all()


#: Powers of two, whose products with features are exact: nothing but an overflow can change a result.
SIZES = [(torch.float32, 2.0**100), (torch.float32, 2.0**60), (torch.float64, 2.0**1000)]


@pytest.mark.parametrize(("dtype", "size"), SIZES)
@pytest.mark.parametrize("name", ["nearest_etf", "standard", "fixed_etf", "batch_norm_etf"])
def test_features_whose_squares_overflow_have_their_direction(name, dtype, size):
    def trained(scale):
        torch.manual_seed(0)
        settings = {"batch_norm": "none"} if name == "batch_norm_etf" else {}
        head = registry.get("heads", name)(**settings).build(feature_dim=16, classes=CLASSES)
        head.to(dtype)
        plain = torch.randn(N, 16, dtype=dtype)
        plain[0, 1:] = 0  # one entry alone
        features = (scale * plain).requires_grad_()
        labels = torch.arange(N) % CLASSES
        logits = head(features, labels)
        nn.functional.cross_entropy(logits, labels).backward()
        with torch.no_grad():
            tested = head.eval()(features)
        return logits.detach(), features.grad * scale, tested, head.classifier()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for huge, ordinary in zip(trained(size), trained(1.0), strict=True):
            assert huge.isfinite().all()
            torch.testing.assert_close(huge, ordinary)


@pytest.mark.parametrize("scale", [2.0**100, 2.0**60])
def test_class_means_of_huge_features_have_their_direction(scale):
    features, labels = torch.randn(N, 16), torch.arange(N) % CLASSES
    ordinary, huge = ClassMeans(16, CLASSES), ClassMeans(16, CLASSES)
    for _ in range(2):
        H = huge(scale * features, labels)
        assert bool(huge.determined)
        torch.testing.assert_close(H, ordinary(features, labels))
    huge(torch.full((N, 16), scale / 10), labels)
    assert bool(huge.determined), "what was learned before stays"
    equal = ClassMeans(16, CLASSES)
    equal(torch.full((N, 16), scale / 10), labels)
    assert not bool(equal.determined)


def test_a_batch_norm_that_overflows_is_told_as_that():
    head = NearestETFClassifier(16, CLASSES, batch_norm="plain")
    with pytest.warns(DdnkitWarning, match="batch norm"):
        head(1e30 * torch.randn(N, 16), torch.arange(N) % CLASSES)


def test_a_mean_whose_square_overflows_is_remembered():
    head = StandardClassifier(16, CLASSES, normalise=False, centre=True)
    features = torch.randn(N, 16)
    head(2.0**100 * features, torch.arange(N) % CLASSES)
    torch.testing.assert_close(head.global_mean / 2.0**100, features.mean(dim=0))

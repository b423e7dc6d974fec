"""The registry: names without imports, validation, failures set aside."""

import subprocess
import sys

import pytest

import ddnkit
from ddnkit import PluginError, registry


def test_shipped_names_are_found():
    assert "nearest_etf" in registry.names("nodes")
    assert {"dense", "embedded_field", "closed_form"} <= set(registry.names("backwards"))
    assert {"stiefel", "sphere"} <= set(registry.names("manifolds"))
    assert any("ddnkit_etf:NearestETF" in str(plugin) for plugin in registry.plugins("nodes"))


@pytest.mark.parametrize("group", sorted(registry.GROUPS))
def test_every_shipped_plugin_loads(group):
    shipped = [p.name for p in registry.plugins(group) if p.distribution.startswith("ddnkit ")]
    assert shipped
    for name in shipped:
        assert registry.get(group, name).__doc__


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(PluginError, match=r"'stiefl' .*ddnkit\.manifolds.*'stiefel'"):
        registry.get("manifolds", "stiefl")
    with pytest.raises(PluginError, match=r"'manifold'.*'manifolds'"):
        registry.names("manifold")
    with pytest.raises(PluginError, match=r"'qqq'.*sphere, stereographic, stiefel"):
        registry.get("manifolds", "qqq")


def test_register_validates_and_refuses_a_taken_name():
    class Mine(ddnkit.DeclarativeNode):
        def objective(self, x, y):
            return (y - x) ** 2

    assert registry.register("nodes", "mine_for_a_test", Mine) is Mine
    assert registry.register("nodes", "mine_for_a_test", Mine) is Mine
    assert registry.get("nodes", "mine_for_a_test") is Mine
    with pytest.raises(PluginError, match=r"'nearest_etf'.*ddnkit_etf:NearestETF"):
        registry.register("nodes", "nearest_etf", Mine)
    with pytest.raises(PluginError, match=r"mine .*\bddnkit\.Manifold\b"):
        registry.register("manifolds", "mine", Mine)

    class Half(ddnkit.DeclarativeNode):
        pass

    with pytest.raises(PluginError, match=r"half .*\bobjective\b"):
        registry.register("nodes", "half", Half)


BROKEN = """\
[ddnkit.nodes]
raises = broken_plugin:Node
wrong_kind = json:dumps
not_parsed = broken plugin
nearest_etf = broken_plugin:Taken
missing = no_such_module:Node
"""


def test_broken_plugins_are_named_and_set_aside(tmp_path):
    info = tmp_path / "broken-1.2.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text(BROKEN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.2\n")
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('on purpose')\n")
    script = f"""
import sys
sys.path.append({str(tmp_path)!r})
from ddnkit import PluginError, registry
for plugin, reason in registry.check_foreign().items():
    print(plugin.name, '|', plugin.distribution, '|', reason)
try:
    registry.get('nodes', 'raises')
except PluginError as error:
    print(error)
print(registry.get('nodes', 'nearest_etf').__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert "raises | broken 1.2 | RuntimeError: on purpose" in lines
    assert any(line.startswith("wrong_kind") and "DeclarativeNode" in line for line in lines)
    assert any(line.startswith("not_parsed") for line in lines)
    assert any(line.startswith("nearest_etf | broken 1.2 | ") for line in lines)
    assert any(line.startswith("missing") and "ModuleNotFoundError" in line for line in lines)
    (used,) = (line for line in lines if "raises (ddnkit.nodes" in line)
    assert "RuntimeError: on purpose" in used
    assert lines[-1] == "NearestETF"

"""``unlearnkit methods`` and ``unlearnkit plugins``: what is installed."""

from unlearnkit.cli.console import clear_errors, out
from unlearnkit.cli.options import Traceback


def methods(traceback: Traceback = False) -> None:
    """List the installed methods, estimators and metrics with their options."""
    with clear_errors(traceback=traceback):
        from unlearnkit.plugins.manager import default_manager
        from unlearnkit.reporting import method_table

        manager = default_manager()
        for title, kind in (("methods", "unlearner"), ("estimators", "estimator"), ("metrics", "metric")):
            entries = manager.provided(kind)
            if entries:
                out.print(method_table(title, entries))
        if manager.problems():
            out.print("Some plugins cannot be used: `unlearnkit plugins` says why.")


def plugins(traceback: Traceback = False) -> None:
    """List the installed plugins; broken and blocked ones with the reason."""
    with clear_errors(traceback=traceback):
        from unlearnkit.plugins.manager import default_manager
        from unlearnkit.reporting import plugin_table

        manager = default_manager()
        out.print(plugin_table(manager.plugins(), manager.problems()))
        for kernel, origin in manager.kernels():
            out.print(f"kernel {kernel.name} for {kernel.layer} layers: {origin}")

"""The exceptions that fastconv adds to Python's own."""


class ShapeError(ValueError):
    """Shapes, sizes or window parameters do not fit together."""


class BackendUnavailableError(ImportError):
    """A backend was asked for by name and cannot run here; the message says why and what to install."""


class SettingError(ImportError):
    """A backend could run, but not in the way that an environment variable asks for."""

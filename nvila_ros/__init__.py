"""Ask a robot's cameras questions in plain language."""

# pip and colcon generate msg, srv and action into another folder of this package: both are searched.
from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)

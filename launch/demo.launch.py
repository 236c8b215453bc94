"""Start the node with a camera that shows it the synthetic world, or plays it a video file."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

SHARE = Path(get_package_share_directory("nvila_ros"))

ARGUMENTS = (
    ("video", "", str, "video file to play in a loop; empty: the synthetic world"),
    ("width", "640", int, "width of the synthetic world, px"),
    ("height", "480", int, "height of the synthetic world, px"),
    ("rate_hz", "30.0", float, "frames a second of the synthetic world"),
)


def generate_launch_description() -> LaunchDescription:
    """Start both; every argument of nvila.launch.py is taken as well."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text) for name, default, _, text in ARGUMENTS
    ]
    camera = Node(
        package="nvila_ros",
        executable="nvila_camera",
        namespace=LaunchConfiguration("namespace", default=""),
        parameters=[
            {name: ParameterValue(LaunchConfiguration(name), value_type=kind) for name, _, kind, _ in ARGUMENTS}
        ],
        remappings=[("image", LaunchConfiguration("image", default="image"))],
        output="screen",
    )
    node = IncludeLaunchDescription(PythonLaunchDescriptionSource(str(SHARE / "launch/nvila.launch.py")))
    return LaunchDescription([*arguments, node, camera])

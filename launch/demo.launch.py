"""Start the node with a camera that shows it the synthetic world, or plays it a video file."""

from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

NODE_LAUNCH_FILE = Path(__file__).parent / "nvila.launch.py"

ARGUMENTS = (
    ("video", "", str, "video file to play in a loop; empty: the synthetic world"),
    ("width", "640", int, "width of the synthetic world, px"),
    ("height", "480", int, "height of the synthetic world, px"),
    ("rate_hz", "30.0", float, "frames a second of the synthetic world"),
)


def start_camera(context: LaunchContext) -> list[Node]:
    """Build the camera once the arguments are known; its clock and its topic are those of the node."""
    parameters = {name: ParameterValue(LaunchConfiguration(name), value_type=kind) for name, _, kind, _ in ARGUMENTS}
    if LaunchConfiguration("use_sim_time").perform(context):
        parameters["use_sim_time"] = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    image = LaunchConfiguration("image").perform(context)
    camera = Node(
        package="nvila_ros",
        executable="nvila_camera",
        namespace=LaunchConfiguration("namespace"),
        parameters=[parameters],
        remappings=[("image", image)] if image else [],
        output="screen",
    )
    return [camera]


def generate_launch_description() -> LaunchDescription:
    """Start both; every argument of nvila.launch.py is taken as well."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text) for name, default, _, text in ARGUMENTS
    ]
    node = IncludeLaunchDescription(PythonLaunchDescriptionSource(str(NODE_LAUNCH_FILE)))
    return LaunchDescription([*arguments, node, OpaqueFunction(function=start_camera)])

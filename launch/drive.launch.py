"""Start the node that lets a model drive a robot, disarmed unless it is told otherwise, and the node that it asks."""

from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

NODE_LAUNCH_FILE = Path(__file__).parent / "nvila.launch.py"

ARGUMENTS = (
    ("armed", "false", bool, "whether the robot may be moved"),
    ("motion", "auto", str, "what moves the robot: auto, nav2, cmd_vel or dry_run"),
    ("wording", "short", str, "how the model is asked: short or navila"),
    ("lock_topic", "", str, "std_msgs/Bool whose true or silence locks the robot; empty: armed alone decides"),
    ("scan_topic", "scan", str, "LaserScan that guards cmd_vel; empty: base_has_guard must be true"),
    ("base_has_guard", "false", bool, "that what takes cmd_vel stops before obstacles by itself"),
)


def start_drive(context: LaunchContext) -> list[Node]:
    """Build the drive once the arguments are known; its clock and its camera are those of the node."""
    parameters = {name: ParameterValue(LaunchConfiguration(name), value_type=kind) for name, _, kind, _ in ARGUMENTS}
    if LaunchConfiguration("use_sim_time").perform(context):
        parameters["use_sim_time"] = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    image = LaunchConfiguration("image").perform(context)
    drive = Node(
        package="nvila_ros",
        executable="nvila_drive",
        namespace=LaunchConfiguration("namespace"),
        parameters=[parameters],
        remappings=[("image", image)] if image else [],
        output="screen",
    )
    return [drive]


def generate_launch_description() -> LaunchDescription:
    """Start both; every argument of nvila.launch.py is taken as well."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text) for name, default, _, text in ARGUMENTS
    ]
    node = IncludeLaunchDescription(PythonLaunchDescriptionSource(str(NODE_LAUNCH_FILE)))
    return LaunchDescription([*arguments, node, OpaqueFunction(function=start_drive)])

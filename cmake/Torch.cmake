# lemo_torch: libtorch from the pinned PyPI wheel in LEMO_VENV.
#
# No find_package(Torch): it insists on a whole CUDA toolkit. The wheel's shared objects name libcudart
# and libcupti, so the two small wheels that hold them are found the same way. The include folders go in
# with -idirafter because the wheel ships headers of old copies of libraries that we use (protobuf).
file(GLOB site "${LEMO_VENV}/lib/python3*/site-packages")
if(NOT EXISTS "${site}/torch/lib/libtorch_cpu.so")
  message(FATAL_ERROR "libtorch not found in ${LEMO_VENV}; run `./dev setup`, "
                      "or pass -DLEMO_VENV=<virtual environment with torch>, or -DLEMO_TORCH=OFF")
endif()
set(LEMO_SITE_PACKAGES ${site})
set(LEMO_TORCH_LIB ${site}/torch/lib)
set(LEMO_CUDA_WHEEL_LIB ${site}/nvidia/cu13/lib)

add_library(lemo_torch INTERFACE)
target_compile_options(lemo_torch INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>
  $<$<COMPILE_LANGUAGE:CXX>:-fPIC>  # executables too (CMake gives them -fPIE), or the PCH is not taken
  "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-idirafter ${site}/torch/include>"
  "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-idirafter ${site}/torch/include/torch/csrc/api/include>")
target_compile_definitions(lemo_torch INTERFACE _GLIBCXX_USE_CXX11_ABI=1)
target_link_libraries(lemo_torch INTERFACE
  ${LEMO_TORCH_LIB}/libtorch_cpu.so ${LEMO_TORCH_LIB}/libc10.so)
target_link_options(lemo_torch INTERFACE
  -Wl,-rpath,${LEMO_TORCH_LIB} -Wl,-rpath,${LEMO_CUDA_WHEEL_LIB}
  -Wl,-rpath-link,${LEMO_CUDA_WHEEL_LIB})

# One precompiled header for every target that includes ATen and autograd: 13 s a file becomes 4 s.
add_library(lemo_torch_pch STATIC ${CMAKE_SOURCE_DIR}/cmake/torch_pch.cc)
target_link_libraries(lemo_torch_pch PUBLIC lemo_torch lemo_flags)
target_precompile_headers(lemo_torch_pch PRIVATE
  <ATen/ATen.h> <torch/csrc/autograd/autograd.h> <torch/csrc/autograd/custom_function.h>
  <string> <vector> <memory> <optional> <functional> <map>)

# lemo_use_torch(TARGET): link libtorch and share the precompiled header.
function(lemo_use_torch target)
  target_link_libraries(${target} PUBLIC lemo_torch)
  target_precompile_headers(${target} REUSE_FROM lemo_torch_pch)
endfunction()

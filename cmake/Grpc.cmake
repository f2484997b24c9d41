# lemo_grpc: Debian's gRPC, linked statically.
#
# Static because it must share our static libprotobuf: with two copies of protobuf in one process the
# reflection service would not know our messages.
find_package(OpenSSL REQUIRED)
find_package(ZLIB REQUIRED)
find_program(LEMO_GRPC_PLUGIN grpc_cpp_plugin REQUIRED)

set(archives)
foreach(name grpc++_reflection grpc++ grpc gpr upb address_sorting re2 cares)
  find_library(LEMO_LIB_${name} NAMES lib${name}.a REQUIRED)
  # Nothing names the reflection service: it registers itself.
  if(name STREQUAL grpc++_reflection)
    list(APPEND archives -Wl,--whole-archive ${LEMO_LIB_${name}} -Wl,--no-whole-archive)
  else()
    list(APPEND archives ${LEMO_LIB_${name}})
  endif()
endforeach()

add_library(lemo_grpc INTERFACE)
target_link_libraries(lemo_grpc INTERFACE ${archives} protobuf::libprotobuf
  absl::base absl::bind_front absl::cord absl::core_headers absl::flat_hash_map absl::hash
  absl::inlined_vector absl::memory absl::optional absl::random_distributions absl::random_random
  absl::status absl::statusor absl::str_format absl::strings absl::synchronization absl::time
  OpenSSL::SSL OpenSSL::Crypto ZLIB::ZLIB ${CMAKE_DL_LIBS})

# lemo_grpc_library(TARGET FILE...): stubs of the services in proto files. LIBS of the messages are to be linked
# beside it.
function(lemo_grpc_library target)
  set(sources)
  foreach(file ${ARGN})
    string(REPLACE ".proto" "" stem ${file})
    set(out ${CMAKE_BINARY_DIR}/gen/${stem}.grpc.pb)
    add_custom_command(
      OUTPUT ${out}.cc ${out}.h
      COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/gen
      COMMAND protobuf::protoc --grpc_out=generate_mock_code=false:${CMAKE_BINARY_DIR}/gen
        --plugin=protoc-gen-grpc=${LEMO_GRPC_PLUGIN} -I ${CMAKE_SOURCE_DIR}/proto ${file}
      DEPENDS ${CMAKE_SOURCE_DIR}/proto/${file}
      VERBATIM)
    list(APPEND sources ${out}.cc)
  endforeach()
  add_library(${target} STATIC ${sources})
  target_include_directories(${target} PUBLIC ${CMAKE_BINARY_DIR}/gen)
  target_link_libraries(${target} PUBLIC lemo_grpc)
endfunction()

# lemo_proto_library(TARGET FILE...): C++ messages from proto files; includes are relative to proto/.
#
# Our libprotobuf is linked statically and its symbols stay hidden (--exclude-libs), because libtorch
# exports some protobuf symbols of another version.
set(Protobuf_USE_STATIC_LIBS ON)
find_package(Protobuf 3.21 REQUIRED)

function(lemo_proto_library target)
  set(sources)
  foreach(file ${ARGN})
    string(REPLACE ".proto" "" stem ${file})
    set(out ${CMAKE_BINARY_DIR}/gen/${stem})
    add_custom_command(
      OUTPUT ${out}.pb.cc ${out}.pb.h
      COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/gen
      COMMAND protobuf::protoc --cpp_out=${CMAKE_BINARY_DIR}/gen -I ${CMAKE_SOURCE_DIR}/proto ${file}
      DEPENDS ${CMAKE_SOURCE_DIR}/proto/${file}
      VERBATIM)
    list(APPEND sources ${out}.pb.cc)
  endforeach()
  add_library(${target} STATIC ${sources})
  target_include_directories(${target} PUBLIC ${CMAKE_BINARY_DIR}/gen)
  target_link_libraries(${target} PUBLIC protobuf::libprotobuf)
  target_link_options(${target} INTERFACE -Wl,--exclude-libs,ALL)
endfunction()

# Warnings, linker, sanitisers: what every target of ours is built with.
add_library(lemo_flags INTERFACE)
target_compile_options(lemo_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-missing-field-initializers -Wno-unknown-pragmas>)
target_include_directories(lemo_flags INTERFACE ${CMAKE_SOURCE_DIR})

find_program(LEMO_MOLD mold)
if(LEMO_MOLD)
  add_link_options(-fuse-ld=mold)
endif()

if(LEMO_SANITIZE)
  add_compile_options(-fsanitize=${LEMO_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${LEMO_SANITIZE})
endif()

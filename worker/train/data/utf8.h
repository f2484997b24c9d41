// Is this UTF-8, and where does it stop being so.
#pragma once

#include <cstddef>
#include <string_view>

namespace lemo::train {

// The offset of the first byte that no well-formed UTF-8 text has there (overlong forms, surrogates
// and code points above U+10FFFF are not well-formed), or npos.
size_t FindInvalidUtf8(std::string_view text);

// `size`, or up to 3 less, so that a sequence that the end of `text` cuts is left out whole. Only
// looks at the last 4 bytes.
size_t WholeUtf8Prefix(std::string_view text);

// The first bytes of `text`, at most `max_bytes`, cut between characters.
std::string_view Utf8Prefix(std::string_view text, size_t max_bytes);

}  // namespace lemo::train

// From the C ABI of the Rust crate to our types. For text/*.cc only.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "text/rust/abi.h"

namespace lemo::text {

inline LemoView View(std::string_view text) { return {text.data(), text.size()}; }

inline std::string Take(LemoBytes bytes) {
  std::string text(bytes.data, bytes.size);
  lemo_bytes_free(bytes);
  return text;
}

// The status of a call that did not return kLemoOk. `what` names what was attempted, and on what.
inline absl::Status TakeError(int32_t code, const std::string& what, LemoBytes error) {
  const std::string message = absl::StrCat(what, ": ", Take(error));
  // A panic over a hostile file is still the file's fault: the crates panic where they find no
  // reason.
  return code == kLemoPanicked
             ? absl::InvalidArgumentError(absl::StrCat(message, " (the library gave up)"))
             : absl::InvalidArgumentError(message);
}

}  // namespace lemo::text

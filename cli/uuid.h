#pragma once

#include <string>

namespace lemo::cli {

// A random UUID (version 4).
std::string RandomUuid();

// The UUID (version 8) that a SHA-256, given as hexadecimal, stands for: the same content always
// has the same one.
std::string UuidOfSha256(const std::string& hex);

}  // namespace lemo::cli

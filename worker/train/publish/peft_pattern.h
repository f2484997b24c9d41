// How PEFT's adapter_config.json names modules.
#pragma once

#include <string>

namespace lemo::train {

// PEFT's rule for an entry of target_modules: the whole dotted name, or a dotted suffix of it.
bool MatchesPeftTarget(const std::string& module, const std::string& target);

// PEFT's rule for a key of rank_pattern and alpha_pattern: a regular expression that matches a
// dotted suffix of the name. Where several keys match, PEFT takes the first in the file.
//
// Keys come from files: one that is no regular expression, is longer than 256 characters or counts
// repetitions with braces matches nothing, and matching takes polynomial time.
bool MatchesPeftPattern(const std::string& module, const std::string& key);

}  // namespace lemo::train

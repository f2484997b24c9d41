// Matching of violations.
#pragma once

#include <string>
#include <vector>

#include "common/violations.h"

namespace lemo::train {

// "field: file:line: reason" of each.
inline std::vector<std::string> Texts(const Violations& violations) {
  std::vector<std::string> out;
  for (const Violation& violation : violations.kept()) out.push_back(violation.ToString());
  return out;
}

}  // namespace lemo::train

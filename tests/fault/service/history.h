// What must be true of the events of a job, whatever happened to the processes.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "lemo/v1/job.pb.h"

namespace lemo::coordinator {

// Faults of a history that ended with success, in words; none when all is well:
//  - sequences count from 1, states follow from one another, attempts only grow;
//  - what the ranks of one attempt said has no gap (they number it), begins behind the checkpoint
//    that they resumed, and each step has the very loss of the undisturbed run (`losses`, by step);
//  - the last attempt goes on to the last step, and success comes once, at the end.
std::vector<std::string> FaultsOf(const std::vector<lemo::v1::JobEvent>& events,
                                  const std::map<int, double>& losses);

}  // namespace lemo::coordinator

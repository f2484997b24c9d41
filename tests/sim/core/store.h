// What is durable in the simulated world, and a judge of everything that becomes so.
#pragma once

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/core/core.h"

namespace lemo::coordinator::sim {

class FakeStore {
 public:
  // Answers what is wrong with the change; empty: nothing.
  std::string Apply(const Persist& change);
  void Apply(const PersistWorker& change);
  void SetDevice(const std::string& worker, const lemo::v1::Device& device) {
    devices_[{worker, device.index()}] = device;
  }
  // After all changes of a step: whether two jobs hold one device, other than by contracts that
  // fit (as they are cut, a base once), or a cordoned worker got a job.
  std::string EndTransaction();

  std::vector<JobRecord> Active() const;  // by number
  const std::map<std::string, JobRecord>& jobs() const { return jobs_; }
  const std::set<std::string>& cordoned() const { return cordoned_; }
  int64_t changes() const { return changes_; }

  // An agent's word on how many events an attempt has, to be compared with what is stored.
  void Claim(const std::string& job, int attempt, int64_t events);

 private:
  std::string CheckEvents(const JobRecord* before, const Persist& change);

  std::map<std::string, JobRecord> jobs_;
  std::map<std::pair<std::string, int>, int64_t> run_events_;  // of an attempt
  std::map<std::pair<std::string, int>, int64_t> claims_;
  std::set<std::pair<std::string, int>> results_;                    // attempts that told of one
  std::map<std::pair<std::string, int>, lemo::v1::Device> devices_;  // by worker and index
  std::set<std::string> cordoned_;
  std::vector<std::string> placed_;  // in this transaction
  int64_t changes_ = 0;
};

bool HasEnded(const lemo::v1::Job& job);
bool IsPlaced(const lemo::v1::Job& job);  // STARTING or RUNNING

}  // namespace lemo::coordinator::sim

// A few connections for reading, which see what is committed and never wait for the writer.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/store/sqlite.h"

namespace lemo::coordinator {

// Thread-safe.
class ReaderPool {
 public:
  // Opens `size` connections to an existing database.
  static absl::StatusOr<std::unique_ptr<ReaderPool>> Open(const std::string& path, int size);

  // A connection for one thread, given back by the destructor.
  class Lease {
   public:
    Lease(ReaderPool* pool, std::unique_ptr<SqlConnection> connection)
        : pool_(pool), connection_(std::move(connection)) {}
    Lease(Lease&&) = default;
    ~Lease();
    SqlConnection* operator->() const { return connection_.get(); }
    SqlConnection& operator*() const { return *connection_; }

   private:
    ReaderPool* pool_;
    std::unique_ptr<SqlConnection> connection_;
  };

  // Waits while all are in use; reads are short.
  Lease Take();

 private:
  absl::Mutex mutex_;
  std::vector<std::unique_ptr<SqlConnection>> free_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lemo::coordinator

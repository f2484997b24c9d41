// What a run says of itself, to its events and its report alike.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>

#include "lemo/v1/run_event.pb.h"
#include "worker/train/loop/engine.h"
#include "worker/train/report/event_sink.h"
#include "worker/train/report/report.h"

namespace lemo::train {

class Reporter {
 public:
  // The sink outlives it.
  explicit Reporter(EventSink& sink) : sink_(sink) {}

  void Emit(lemo::v1::RunEvent event) { report_.Add(sink_.Emit(std::move(event))); }

  void Phase(const std::string& name, const std::string& detail = "");
  void Warning(const std::string& message, const std::string& field = "");
  void Eval(int64_t step, const EvalResult& result, bool best);
  // `path`: the checkpoint's directory; `seconds` of writing it.
  void Checkpoint(int64_t step, const std::filesystem::path& path, double seconds,
                  const std::string& reason);

  RunReport& report() { return report_; }

 private:
  EventSink& sink_;
  RunReport report_;
};

}  // namespace lemo::train

#include "worker/train/report/event_sink.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <sstream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/util/delimited_message_util.h"
#include "worker/train/report/descriptor_writer.h"
#include "worker/train/report/pretty.h"

namespace lemo::train {
namespace {

class PrettySink : public EventSink {
 public:
  explicit PrettySink(int fd) : fd_(fd), writer_(fd), formatter_(DetectTerminal(fd)) {}

 protected:
  void Write(const lemo::v1::RunEvent& event) override {
    formatter_.set_width(DetectTerminal(fd_).width);
    writer_.Write(formatter_.Format(event));
  }

 private:
  int fd_;
  DescriptorWriter writer_;
  PrettyFormatter formatter_;
};

class JsonSink : public EventSink {
 public:
  explicit JsonSink(int fd) : writer_(fd) {}

 protected:
  void Write(const lemo::v1::RunEvent& event) override { writer_.Write(EventToJson(event) + "\n"); }

 private:
  DescriptorWriter writer_;
};

class ProtobufSink : public EventSink {
 public:
  explicit ProtobufSink(int fd) : writer_(fd) {}

 protected:
  void Write(const lemo::v1::RunEvent& event) override {
    std::ostringstream record;
    google::protobuf::util::SerializeDelimitedToOstream(event, &record);
    writer_.Write(record.str());
  }

  bool Takes(const lemo::v1::RunEvent& event) const override {
    constexpr size_t kSelectionBytesMax = 512 << 10;
    return !event.has_selection() || event.selection().ByteSizeLong() <= kSelectionBytesMax;
  }

 private:
  DescriptorWriter writer_;
};

class NullSink : public EventSink {
 protected:
  void Write(const lemo::v1::RunEvent&) override {}
};

const char* GeneralAdvice(int exit_code) {
  switch (exit_code) {
    case 2:
      return "correct what is listed above and run the same command again.";
    case 3:
      return "choose a cheaper memory.policy (input, or attn_out+offload), a smaller "
             "data.max_length "
             "or train.micro_batch_tokens, raise memory.budget_bytes if there is one, and go on "
             "with --resume auto.";
    default:
      return "this is a fault of lemo-train; report the lines above, and go on with --resume auto.";
  }
}

}  // namespace

lemo::v1::RunEvent EventSink::Emit(lemo::v1::RunEvent event) {
  using Seconds = std::chrono::duration<double>;
  event.set_unix_seconds(Seconds(std::chrono::system_clock::now().time_since_epoch()).count());
  if (!Takes(event)) return event;
  event.set_sequence(++sequence_);
  Write(event);
  return event;
}

absl::StatusOr<std::unique_ptr<EventSink>> MakeEventSink(const std::string& format, int output_fd) {
  if (format == "pretty") return std::make_unique<PrettySink>(output_fd);
  if (format == "json") return std::make_unique<JsonSink>(output_fd);
  int fd = -1;
  if (format.substr(0, 3) != "fd:" || !absl::SimpleAtoi(format.substr(3), &fd) || fd < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--events: expected pretty, json or fd:N (N a descriptor, for example fd:3), got \"",
        format, "\""));
  }
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY) {
    return absl::InvalidArgumentError(
        absl::StrCat("--events: descriptor ", fd, " is not open for writing"));
  }
  return std::make_unique<ProtobufSink>(fd);
}

std::unique_ptr<EventSink> MakeNullSink() { return std::make_unique<NullSink>(); }

lemo::v1::RunEvent MakeErrorEvent(const std::string& message, const Violations& violations,
                                  int exit_code, const std::string& advice) {
  lemo::v1::RunEvent event;
  auto* error = event.mutable_error();
  error->set_message(message);
  for (const Violation& violation : violations.kept()) {
    auto* out = error->add_violations();
    out->set_field(violation.field);
    out->set_file(violation.file);
    out->set_line(violation.line);
    out->set_json_path(violation.json_path);
    out->set_reason(violation.reason);
  }
  if (const int64_t kept = error->violations_size(); violations.total() > kept) {
    absl::StrAppend(error->mutable_message(), " (", violations.total(), " faults, the first ", kept,
                    " follow)");
  }
  error->set_exit_code(exit_code);
  error->set_advice(advice.empty() ? GeneralAdvice(exit_code) : advice);
  return event;
}

}  // namespace lemo::train

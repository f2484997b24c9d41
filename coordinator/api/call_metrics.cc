#include "coordinator/api/call_metrics.h"

#include <grpcpp/support/server_interceptor.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"

namespace lemo::coordinator {
namespace {

namespace experimental = grpc::experimental;

// `/lemo.v1.JobService/SubmitJob` is `JobService/SubmitJob`. Only registered methods come here, so
// there are few.
std::string ShortMethod(absl::string_view method) {
  if (!absl::ConsumePrefix(&method, "/lemo.v1.")) absl::ConsumePrefix(&method, "/");
  return std::string(method);
}

// Of one call; made when it begins.
class Interceptor final : public experimental::Interceptor {
 public:
  Interceptor(Metrics* metrics, experimental::ServerRpcInfo* info)
      : metrics_(metrics),
        method_(ShortMethod(info->method())),
        unary_(info->type() == experimental::ServerRpcInfo::Type::UNARY) {}

  void Intercept(experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(
            experimental::InterceptionHookPoints::PRE_SEND_STATUS)) {
      const auto code = static_cast<absl::StatusCode>(methods->GetSendStatus().error_code());
      metrics_->OnCall(method_, absl::StatusCodeToString(code), absl::Now() - begin_, unary_);
    }
    methods->Proceed();
  }

 private:
  Metrics* const metrics_;
  const std::string method_;
  const bool unary_;
  const absl::Time begin_ = absl::Now();
};

class Factory final : public experimental::ServerInterceptorFactoryInterface {
 public:
  explicit Factory(Metrics* metrics) : metrics_(metrics) {}
  experimental::Interceptor* CreateServerInterceptor(experimental::ServerRpcInfo* info) override {
    return new Interceptor(metrics_, info);  // the library deletes it
  }

 private:
  Metrics* const metrics_;
};

}  // namespace

void CountCalls(Metrics* metrics, grpc::ServerBuilder* builder) {
  std::vector<std::unique_ptr<experimental::ServerInterceptorFactoryInterface>> factories;
  factories.push_back(std::make_unique<Factory>(metrics));
  builder->experimental().SetInterceptorCreators(std::move(factories));
}

}  // namespace lemo::coordinator

// Queues between host and device (acl_tdt_channel): the batches of sink mode go through them.
#include <unistd.h>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include "internal.h"

namespace softnpu {

namespace {

constexpr int kQueueEmpty = 207013, kQueueFull = 207014;
constexpr size_t kDefaultCapacity = 16;
constexpr int kEndOfData = 1;  // ACL_TENSOR_DATA_END_OF_SEQUENCE

struct Item {
  int kind;
  Dims dims;
  int dtype;
  std::string bytes;
  void *data;
};
struct Dataset {
  std::vector<Item *> items;
};
struct Channel {
  std::string name;
  size_t capacity;
  std::deque<std::vector<Item>> batches;
  bool stopped = false;
};

// One lock for all: a batch takes far longer to compute than to hand over. Never destroyed.
struct Channels {
  std::mutex lock;
  std::condition_variable changed;
  std::map<std::string, std::shared_ptr<Channel>> by_name;
  std::chrono::seconds batch_timeout{900};
};
Channels &channels() {
  static auto *only = new Channels;
  return *only;
}

int stop(Channel *channel) {
  std::lock_guard<std::mutex> guard(channels().lock);
  channel->stopped = true;
  channels().changed.notify_all();
  return 0;
}

std::vector<Item> take_batch(const std::string &name) {
  auto &all = channels();
  std::unique_lock<std::mutex> guard(all.lock);
  auto found = all.by_name.find(name);
  if (found == all.by_name.end()) throw Error("no data queue " + name);
  std::shared_ptr<Channel> channel = found->second;
  auto ready = [&] { return channel->stopped || !channel->batches.empty(); };
  if (!all.changed.wait_for(guard, all.batch_timeout, ready)) {
    throw Error("no batch arrived in the data queue " + name + " within " +
                std::to_string(all.batch_timeout.count()) + " s");
  }
  if (channel->batches.empty()) throw Error("the data queue " + name + " was closed while a step waited for a batch");
  auto batch = std::move(channel->batches.front());
  if (!batch.empty() && batch[0].kind == kEndOfData) throw Error("end of data: queue " + name + " has no more batches");
  channel->batches.pop_front();
  all.changed.notify_all();
  return batch;
}

}  // namespace

NAMED_OP(GetNext) {
  auto &attributes = call.attributes;
  auto name = attributes.count("channel_name") ? attributes["channel_name"].text : attributes["shared_name"].text;
  auto batch = take_batch(name);
  if (batch.size() != call.outputs.size()) {
    throw Error("a batch of " + std::to_string(batch.size()) + " tensors, but the step expects " +
                std::to_string(call.outputs.size()));
  }
  for (size_t i = 0; i < batch.size(); i++) {
    size_t wanted = call.outputs[i].count() * item_bytes(call.outputs[i].dtype);
    if (batch[i].bytes.size() != wanted) {
      throw Error("tensor " + std::to_string(i) + " of the batch has " + std::to_string(batch[i].bytes.size()) +
                  " bytes, but the step expects " + std::to_string(wanted));
    }
    std::memcpy(call.outputs[i].data, batch[i].bytes.data(), wanted);
  }
}

}  // namespace softnpu

using namespace softnpu;

SOFTNPU_EXPORT Channel *acltdtCreateChannelWithCapacity(uint32_t, const char *name, size_t capacity) {
  auto channel = std::make_shared<Channel>();
  channel->name = name;
  channel->capacity = capacity ? capacity : kDefaultCapacity;
  std::lock_guard<std::mutex> guard(channels().lock);
  channels().by_name[name] = channel;
  return channel.get();
}
SOFTNPU_EXPORT Channel *acltdtCreateChannel(uint32_t device, const char *name) {
  return acltdtCreateChannelWithCapacity(device, name, kDefaultCapacity);
}
SOFTNPU_EXPORT int acltdtStopChannel(Channel *channel) { return stop(channel); }
SOFTNPU_EXPORT int acltdtCleanChannel(Channel *channel) {
  std::lock_guard<std::mutex> guard(channels().lock);
  channel->batches.clear();
  channels().changed.notify_all();
  return 0;
}
SOFTNPU_EXPORT int acltdtDestroyChannel(Channel *channel) {
  stop(channel);
  std::lock_guard<std::mutex> guard(channels().lock);
  auto found = channels().by_name.find(channel->name);
  if (found != channels().by_name.end() && found->second.get() == channel) channels().by_name.erase(found);
  return 0;
}
SOFTNPU_EXPORT int acltdtQueryChannelSize(const Channel *channel, size_t *count) {
  std::lock_guard<std::mutex> guard(channels().lock);
  *count = channel->batches.size();
  return 0;
}
SOFTNPU_EXPORT int acltdtSendTensor(const Channel *handle, const Dataset *batch, int32_t timeout_ms) {
  auto *channel = const_cast<Channel *>(handle);
  auto &all = channels();
  std::unique_lock<std::mutex> guard(all.lock);
  auto has_room = [&] { return channel->stopped || channel->batches.size() < channel->capacity; };
  if (timeout_ms < 0) all.changed.wait(guard, has_room);
  else if (!all.changed.wait_for(guard, std::chrono::milliseconds(timeout_ms), has_room)) return kQueueFull;
  if (channel->stopped) return 0;  // nobody will ask for it
  channel->batches.emplace_back();
  for (auto *item : batch->items) channel->batches.back().push_back(*item);
  all.changed.notify_all();
  return 0;
}
// What a device would print comes back this way; operators here print nothing.
SOFTNPU_EXPORT int acltdtReceiveTensor(const Channel *, Dataset *, int32_t timeout_ms) {
  usleep((timeout_ms >= 0 && timeout_ms < 50 ? timeout_ms : 50) * 1000);
  return kQueueEmpty;
}
SOFTNPU_EXPORT int aclrtSetOpExecuteTimeOut(uint32_t seconds) {
  std::lock_guard<std::mutex> guard(channels().lock);
  if (seconds) channels().batch_timeout = std::chrono::seconds(seconds);
  return 0;
}

SOFTNPU_EXPORT Dataset *acltdtCreateDataset() { return new Dataset; }
SOFTNPU_EXPORT int acltdtDestroyDataset(const Dataset *dataset) { delete dataset; return 0; }
SOFTNPU_EXPORT const char *acltdtGetDatasetName(const Dataset *) { return ""; }
SOFTNPU_EXPORT size_t acltdtGetDatasetSize(const Dataset *dataset) { return dataset->items.size(); }
SOFTNPU_EXPORT int acltdtAddDataItem(Dataset *dataset, Item *item) { dataset->items.push_back(item); return 0; }
SOFTNPU_EXPORT Item *acltdtGetDataItem(const Dataset *dataset, size_t i) {
  return i < dataset->items.size() ? dataset->items[i] : nullptr;
}
SOFTNPU_EXPORT Item *acltdtCreateDataItem(int kind, const int64_t *dims, size_t rank, int dtype, void *data, size_t bytes) {
  auto *item = new Item{kind, {}, dtype, {}, data};
  if (rank) item->dims.assign(dims, dims + rank);
  if (data) item->bytes.assign(static_cast<char *>(data), bytes);
  return item;
}
SOFTNPU_EXPORT int acltdtDestroyDataItem(const Item *item) { delete item; return 0; }
SOFTNPU_EXPORT void *acltdtGetDataAddrFromItem(const Item *item) { return item->data; }
SOFTNPU_EXPORT size_t acltdtGetDataSizeFromItem(const Item *item) { return item->bytes.size(); }
SOFTNPU_EXPORT int acltdtGetDataTypeFromItem(const Item *item) { return item->dtype; }
SOFTNPU_EXPORT int acltdtGetTensorTypeFromItem(const Item *item) { return item->kind; }
SOFTNPU_EXPORT size_t acltdtGetDimNumFromItem(const Item *item) { return item->dims.size(); }
SOFTNPU_EXPORT int acltdtGetDimsFromItem(const Item *item, int64_t *dims, size_t rank) {
  for (size_t i = 0; i < rank && i < item->dims.size(); i++) dims[i] = item->dims[i];
  return 0;
}

// A libcuda.so.1 for tests: a GPU that is emulated.
//
// Kernels are executed from their PTX (execute.cpp). A stream does nothing before somebody waits for it, and a copy
// from pinned memory reads it only then: so a host that does not wait where it must gets what is not there yet. Of the
// nodes of a graph that may run next the one that was captured last does, and two of which neither follows the other may
// not touch the same memory unless both read it. Memory of the device is that of the host, each allocation apart and
// filled with NaN. It has what numba-cuda and cuda.core call here; a function that is missing says its name.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "ptx.hpp"

using namespace emulator;
typedef int Result;
typedef uint64_t Pointer;
typedef void* Handle;
#define API extern "C" __attribute__((visibility("default"))) Result

namespace {
std::recursive_mutex lock;
std::map<Pointer, size_t> allocations;
std::map<Pointer, size_t> pinned;
size_t allocated = 0;
const size_t MEMORY = 8ull << 30;
const int MOST_SHARED = 232448;  // bytes of a block that asks for them
const unsigned PORTABLE_CLUSTER = 8, MOST_CLUSTER = 16;  // blocks of a cluster; the latter of kernels that ask for them
const unsigned ROOM = 48;  // for so many blocks of clusters at once
std::string failure;
bool verbose = getenv("CUDA_EMULATOR_VERBOSE") != nullptr;
thread_local Handle current = nullptr;
uintptr_t next_handle = 0x2000;
Handle fresh() { return (Handle)(next_handle += 16); }

struct Node {
  std::function<void()> work;
  std::string name;
  std::set<int> after;       // nodes that it waits for
  std::vector<bool> before;  // whether a node before it in the list is one that it follows, at once or by others
};
struct Graph {
  std::vector<Node> nodes;
  Handle origin;

  void add(std::function<void()> work, const std::string& name, const std::set<int>& after) {
    Node node{work, name, after, std::vector<bool>(nodes.size(), false)};
    for (int a : after) {
      auto& others = nodes[a].before;
      for (size_t i = 0; i < others.size(); i++) node.before[i] = node.before[i] | others[i];
      node.before[a] = true;
    }
    nodes.push_back(node);
  }
  bool follows(int node, int other) const {
    return node == other || (other < node && nodes[node].before[other]);
  }
  // How many nodes the longest chain has.
  int path() const {
    std::vector<int> until;
    for (auto& node : nodes) {
      int most = 0;
      for (int a : node.after) most = std::max(most, until[a]);
      until.push_back(most + 1);
    }
    return until.empty() ? 0 : *std::max_element(until.begin(), until.end());
  }
};
struct Stream {
  std::deque<std::function<void()>> queue;
  bool blocking = true;
  Handle graph = nullptr;  // that is being captured
  std::set<int> last;      // its nodes that the next one waits for
};
std::map<Handle, Stream> streams;
std::map<Handle, std::shared_ptr<Graph>> graphs;
struct Event {
  bool recorded = false, reached = true;
  double time = 0;
  Handle stream = nullptr;
  uint64_t number = 0;
  Handle graph = nullptr;  // in whose capture it was recorded
  std::set<int> last;
};
std::map<Handle, Event> events;
std::map<Handle, std::shared_ptr<Module>> libraries;
std::map<Handle, std::shared_ptr<Kernel>> functions;
std::map<std::string, uint64_t> counts;  // of what the host has asked for, by emulator_count

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

void drain(Handle s) {
  auto& q = streams[s].queue;
  while (!q.empty()) {
    auto f = std::move(q.front());
    q.pop_front();
    if (failure.empty()) {
      try {
        f();
      } catch (std::exception& e) {
        failure = e.what();
        fprintf(stderr, "CUDA emulator: %s\n", e.what());
      }
    }
  }
}
void drain_all() {
  std::vector<Handle> all;
  for (auto& [s, x] : streams) {
    (void)x;
    all.push_back(s);
  }
  for (auto s : all) drain(s);
}
Result result() { return failure.empty() ? 0 : 719; }

// The legacy default stream waits for all blocking streams, and they for it.
void enqueue(Handle s, std::function<void()> f, const char* what = "other", const std::string& name = "") {
  auto& stream = streams[s];
  if (stream.graph) {
    auto& graph = *graphs[stream.graph];
    graph.add(f, name.empty() ? what : name, stream.last);
    stream.last = {(int)graph.nodes.size() - 1};
    counts["captured"]++;
    return;
  }
  counts[what]++;
  if (s == nullptr || s == (Handle)1) {
    for (auto& [o, x] : streams)
      if (o != s && x.blocking) drain(o);
  } else if (stream.blocking) {
    drain(nullptr);
    drain((Handle)1);
  }
  stream.queue.push_back(f);
}
Result on_device(Pointer p, size_t n) {
  if (n == 0 || is_allocated(p, n)) return 0;
  failure = "copy of " + std::to_string(n) + " bytes to or from memory that is not allocated";
  fprintf(stderr, "CUDA emulator: %s\n", failure.c_str());
  return 1;
}
bool is_pinned(Pointer p, size_t n) {
  auto a = pinned.upper_bound(p);
  return a != pinned.begin() && (--a, p + n <= a->first + a->second);
}

// Finds nodes of which neither follows the other, though one writes what the other touches.
class Races {
  struct Word {
    int written = -1, readers = 0;  // the last node that wrote it; the set of those that have read it since
  };
  const Graph& graph;
  std::map<Pointer, std::vector<Word>> memory;  // of the allocations that are touched
  std::vector<std::set<int>> sets{{}};
  std::map<std::set<int>, int> numbers{{{}, 0}};
  std::map<std::pair<int, int>, int> with;  // a set and a node -> the set with that node
  Pointer first = 0, end = 0;               // of the allocation that was touched last
  Word* words = nullptr;

  void check(int node, int other, const char* what) {
    if (other < 0 || graph.follows(node, other)) return;
    throw std::runtime_error("race in a graph: " + graph.nodes[node].name + what + graph.nodes[other].name +
                             ", and neither follows the other");
  }
  int added(int set, int node) {
    auto found = with.find({set, node});
    if (found != with.end()) return found->second;
    std::set<int> all{node};
    for (int other : sets[set])
      if (!graph.follows(node, other)) all.insert(other);
    auto number = numbers.emplace(all, (int)sets.size());
    if (number.second) sets.push_back(all);
    return with[{set, node}] = number.first->second;
  }

 public:
  explicit Races(const Graph& graph) : graph(graph) {}
  void touch(int node, Pointer at, int bytes, bool write) {
    if (at < first || at >= end) {
      auto a = --allocations.upper_bound(at);
      first = a->first;
      end = first + a->second;
      auto& of = memory[first];
      of.resize((a->second + 3) / 4);
      words = of.data();
    }
    for (size_t i = (at - first) / 4; i <= (at + bytes - 1 - first) / 4; i++) {
      Word& word = words[i];
      check(node, word.written, write ? " writes what is written by " : " reads what is written by ");
      if (write) {
        for (int reader : sets[word.readers]) check(node, reader, " writes what is read by ");
        word = {node, 0};
      } else {
        word.readers = added(word.readers, node);
      }
    }
  }
};

// Runs the nodes, of those that may run next the one that was captured last.
void run(const Graph& graph) {
  size_t count = graph.nodes.size();
  std::vector<size_t> waits(count);
  std::vector<std::vector<int>> followers(count);
  std::set<int> ready;
  for (size_t i = 0; i < count; i++) {
    waits[i] = graph.nodes[i].after.size();
    for (int a : graph.nodes[i].after) followers[a].push_back((int)i);
    if (!waits[i]) ready.insert((int)i);
  }
  Races races(graph);
  int node = -1;
  if (graph.path() < (int)count)
    accessed = [&](uint64_t at, int bytes, bool write) { races.touch(node, at, bytes, write); };
  try {
    while (!ready.empty()) {
      node = *ready.rbegin();
      ready.erase(node);
      graph.nodes[node].work();
      for (int follower : followers[node])
        if (!--waits[follower]) ready.insert(follower);
    }
  } catch (...) {
    accessed = nullptr;
    throw;
  }
  accessed = nullptr;
}
}  // namespace

namespace emulator {
std::function<void(uint64_t, int, bool)> accessed;

bool is_allocated(uint64_t p, uint64_t n) {
  auto a = allocations.upper_bound(p);
  if (a == allocations.begin()) return false;
  --a;
  return p + n <= a->first + a->second;
}
}  // namespace emulator

// How often the host has asked for this since the process began: "launch", "replay", "copy", "wait", "allocation",
// "free"; "captured" are the nodes of graphs, "path" those of their longest chains. A copy from or to memory that is not page-locked is a wait as well: the
// driver may wait for the stream before it reads, and does until it has written.
extern "C" __attribute__((visibility("default"))) uint64_t emulator_count(const char* what) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  return counts[what];
}

#define LOCKED std::lock_guard<std::recursive_mutex> guard(lock)
#define LOG(...)                            \
  do {                                      \
    if (verbose) {                          \
      fprintf(stderr, "[cu] " __VA_ARGS__); \
      fputc('\n', stderr);                  \
    }                                       \
  } while (0)

API cuInit(unsigned) { return 0; }
API cuDriverGetVersion(int* v) {
  *v = 13000;
  return 0;
}
API cuDeviceGetCount(int* n) {
  *n = 1;
  return 0;
}
API cuDeviceGet(int* d, int) {
  *d = 0;
  return 0;
}
API cuDeviceGetName(char* s, int n, int) {
  strncpy(s, "emulated GPU", n);
  return 0;
}
API cuDeviceGetUuid_v2(char* u, int) {
  memset(u, 7, 16);
  return 0;
}
API cuDeviceTotalMem_v2(size_t* n, int) {
  *n = MEMORY;
  return 0;
}
API cuDeviceGetAttribute(int* v, int a, int) {
  static const std::map<int, int> values = {
      {1, 1024},       {2, 1024},   {3, 1024},
      {4, 64},                                   // threads of a block
      {5, 2147483647}, {6, 65535},  {7, 65535},  // blocks of a grid
      {8, 49152},      {9, 65536},  {81, 233472},
      {97, MOST_SHARED},  // bytes of shared and constant memory
      {10, 32},        {12, 65536}, {82, 65536},
      {39, 2048},                             // threads of a warp, registers, threads of a multiprocessor
      {16, 4},         {75, 9},     {76, 0},  // multiprocessors, compute capability
      {18, 0},         {19, 0},     {34, 0},
      {35, 0},  // no display, no other memory than its own
  };
  auto x = values.find(a);
  *v = x == values.end() ? 1 : x->second;
  return 0;
}
API cuDevicePrimaryCtxRetain(Handle* c, int) {
  *c = (Handle)0x1000;
  return 0;
}
API cuDevicePrimaryCtxRelease_v2(int) { return 0; }
API cuDevicePrimaryCtxReset_v2(int) { return 0; }
API cuDevicePrimaryCtxGetState(int, unsigned* f, int* a) {
  *f = 0;
  *a = 1;
  return 0;
}
API cuCtxGetCurrent(Handle* c) {
  *c = current;
  return 0;
}
API cuCtxSetCurrent(Handle c) {
  current = c;
  return 0;
}
API cuCtxPushCurrent_v2(Handle c) {
  current = c;
  return 0;
}
API cuCtxPopCurrent_v2(Handle* c) {
  if (c) *c = current;
  current = nullptr;
  return 0;
}
API cuCtxGetDevice(int* d) {
  *d = 0;
  return 0;
}
API cuCtxSynchronize(void) {
  LOCKED;
  LOG("synchronize");
  counts["wait"]++;
  drain_all();
  return result();
}
API cuCtxGetApiVersion(Handle, unsigned* v) {
  *v = 13000;
  return 0;
}
API cuCtxGetFlags(unsigned* f) {
  *f = 0;
  return 0;
}
API cuCtxGetStreamPriorityRange(int* a, int* b) {
  *a = 0;
  *b = -5;
  return 0;
}

static Pointer reserve(size_t n) {
  void* p = nullptr;
  if (posix_memalign(&p, 512, n ? n : 1)) return 0;
  memset(p, 0xff, n);
  return (Pointer)p;
}
API cuMemAlloc_v2(Pointer* p, size_t n) {
  LOCKED;
  counts["allocation"]++;
  if (allocated + n > MEMORY) return 2;
  *p = reserve(n);
  allocations[*p] = n;
  allocated += n;
  return *p ? 0 : 2;
}
API cuMemFree_v2(Pointer p) {
  LOCKED;
  counts["free"]++;
  drain_all();
  auto a = allocations.find(p);
  if (a == allocations.end()) return 1;
  allocated -= a->second;
  allocations.erase(a);
  memset((void*)p, 0xfe, 1);
  free((void*)p);
  return 0;
}
API cuMemAllocAsync(Pointer* p, size_t n, Handle) { return cuMemAlloc_v2(p, n); }
API cuMemAllocFromPoolAsync(Pointer* p, size_t n, Handle, Handle) { return cuMemAlloc_v2(p, n); }
API cuMemFreeAsync(Pointer p, Handle) { return cuMemFree_v2(p); }
API cuMemGetInfo_v2(size_t* f, size_t* t) {
  LOCKED;
  *f = MEMORY - allocated;
  *t = MEMORY;
  return 0;
}
API cuMemHostAlloc(void** p, size_t n, unsigned) {
  LOCKED;
  counts["allocation"]++;
  *p = (void*)reserve(n);
  pinned[(Pointer)*p] = n;
  return 0;
}
API cuMemFreeHost(void* p) {
  LOCKED;
  counts["free"]++;
  drain_all();
  pinned.erase((Pointer)p);
  free(p);
  return 0;
}
API cuMemHostRegister_v2(void* p, size_t n, unsigned) {
  LOCKED;
  pinned[(Pointer)p] = n;
  return 0;
}
API cuMemHostUnregister(void* p) {
  LOCKED;
  drain_all();
  pinned.erase((Pointer)p);
  return 0;
}
API cuMemHostGetDevicePointer_v2(Pointer* d, void* p, unsigned) {
  *d = (Pointer)p;
  return 0;
}

static Result copy(Pointer to, Pointer from, size_t n, Handle s, bool wait, const char* what) {
  LOG("%s %zu bytes, stream %p", what, n, s);
  if (is_pinned(from, n) || is_allocated(from, n)) {
    enqueue(s, [=] { memmove((void*)to, (void*)from, n); }, "copy");  // reads when it comes to it
  } else {
    auto held = std::make_shared<std::vector<char>>((char*)from, (char*)from + n);
    enqueue(s, [=] { memcpy((void*)to, held->data(), n); }, "copy");
    counts["wait"] += !wait;
  }
  if (wait) {
    counts["wait"]++;
    drain(s);
  }
  return result();
}
API cuMemcpyHtoDAsync_v2(Pointer d, const void* h, size_t n, Handle s) {
  LOCKED;
  if (on_device(d, n)) return 1;
  return copy(d, (Pointer)h, n, s, false, "host to device");
}
API cuMemcpyHtoD_v2(Pointer d, const void* h, size_t n) {
  LOCKED;
  if (on_device(d, n)) return 1;
  return copy(d, (Pointer)h, n, nullptr, true, "host to device, waiting");
}
API cuMemcpyDtoHAsync_v2(void* h, Pointer d, size_t n, Handle s) {
  LOCKED;
  if (on_device(d, n)) return 1;
  return copy((Pointer)h, d, n, s, !is_pinned((Pointer)h, n), "device to host");
}
API cuMemcpyDtoH_v2(void* h, Pointer d, size_t n) {
  LOCKED;
  if (on_device(d, n)) return 1;
  return copy((Pointer)h, d, n, nullptr, true, "device to host, waiting");
}
API cuMemcpyDtoDAsync_v2(Pointer d, Pointer f, size_t n, Handle s) {
  LOCKED;
  if (on_device(d, n) || on_device(f, n)) return 1;
  return copy(d, f, n, s, false, "device to device");
}
API cuMemcpyDtoD_v2(Pointer d, Pointer f, size_t n) { return cuMemcpyDtoDAsync_v2(d, f, n, nullptr); }
API cuMemcpyAsync(Pointer d, Pointer f, size_t n, Handle s) {
  LOCKED;
  return copy(d, f, n, s, false, "copy");
}
API cuMemcpy(Pointer d, Pointer f, size_t n) {
  LOCKED;
  return copy(d, f, n, nullptr, true, "copy, waiting");
}
API cuMemsetD8Async(Pointer d, unsigned char v, size_t n, Handle s) {
  LOCKED;
  LOG("set %zu bytes, stream %p", n, s);
  if (on_device(d, n)) return 1;
  enqueue(s, [=] { memset((void*)d, v, n); });
  return 0;
}
API cuMemsetD8_v2(Pointer d, unsigned char v, size_t n) { return cuMemsetD8Async(d, v, n, nullptr); }
API cuMemsetD32Async(Pointer d, unsigned v, size_t n, Handle s) {
  LOCKED;
  LOG("set %zu words, stream %p", n, s);
  if (on_device(d, 4 * n)) return 1;
  enqueue(s, [=] {
    for (size_t i = 0; i < n; i++) ((unsigned*)d)[i] = v;
  });
  return 0;
}
API cuMemsetD32_v2(Pointer d, unsigned v, size_t n) { return cuMemsetD32Async(d, v, n, nullptr); }
API cuMemGetAddressRange_v2(Pointer* b, size_t* n, Pointer p) {
  LOCKED;
  auto a = allocations.upper_bound(p);
  if (a == allocations.begin()) return 1;
  --a;
  if (b) *b = a->first;
  if (n) *n = a->second;
  return 0;
}
API cuPointerGetAttribute(void* v, int a, Pointer p) {
  LOCKED;
  bool there = is_allocated(p, 1);
  if (!there && !is_pinned(p, 1)) return 1;
  if (a == 1) *(Handle*)v = (Handle)0x1000;
  else if (a == 2) *(int*)v = there ? 2 : 1;
  else if (a == 3 || a == 4) *(Pointer*)v = p;
  else *(int*)v = 0;
  return 0;
}
API cuPointerGetAttributes(unsigned n, int* a, void** v, Pointer p) {
  for (unsigned i = 0; i < n; i++)
    if (Result r = cuPointerGetAttribute(v[i], a[i], p)) return r;
  return 0;
}

API cuStreamCreateWithPriority(Handle* s, unsigned flags, int) {
  LOCKED;
  *s = fresh();
  streams[*s].blocking = !(flags & 1);
  LOG("new stream %p flags %u", *s, flags);
  return 0;
}
API cuStreamCreate(Handle* s, unsigned flags) { return cuStreamCreateWithPriority(s, flags, 0); }
API cuStreamDestroy_v2(Handle s) {
  LOCKED;
  drain(s);
  streams.erase(s);
  return 0;
}
API cuStreamSynchronize(Handle s) {
  LOCKED;
  LOG("synchronize stream %p", s);
  counts["wait"]++;
  if (s == nullptr)
    for (auto& [o, x] : streams)
      if (x.blocking) drain(o);
  drain(s);
  return result();
}
API cuStreamQuery(Handle s) {
  LOCKED;
  return streams[s].queue.empty() ? 0 : 600;
}
API cuStreamGetFlags(Handle s, unsigned* f) {
  LOCKED;
  *f = !streams[s].blocking;
  return 0;
}
API cuStreamGetPriority(Handle, int* p) {
  *p = 0;
  return 0;
}
API cuStreamGetCtx(Handle, Handle* c) {
  *c = (Handle)0x1000;
  return 0;
}
API cuStreamGetDevice(Handle, int* d) {
  *d = 0;
  return 0;
}
API cuStreamGetId(Handle s, unsigned long long* i) {
  *i = (Pointer)s;
  return 0;
}
API cuStreamAddCallback(Handle s, void (*f)(Handle, Result, void*), void* u, unsigned) {
  LOCKED;
  enqueue(s, [=] { f(s, 0, u); });
  return 0;
}
API cuLaunchHostFunc(Handle s, void (*f)(void*), void* u) {
  LOCKED;
  enqueue(s, [=] { f(u); });
  return 0;
}
API cuEventCreate(Handle* e, unsigned) {
  LOCKED;
  *e = fresh();
  events[*e];
  return 0;
}
API cuEventRecord(Handle e, Handle s) {
  LOCKED;
  auto& event = events[e];
  event.graph = streams[s].graph;
  event.last = streams[s].last;
  if (event.graph) return 0;
  event.recorded = true;
  event.reached = false;
  event.stream = s;
  uint64_t number = ++event.number;
  LOG("record event %p in stream %p", e, s);
  enqueue(s, [=] {
    auto& x = events[e];
    if (x.number == number) {
      x.reached = true;
      x.time = now();
    }
  });
  return 0;
}
API cuEventRecordWithFlags(Handle e, Handle s, unsigned) { return cuEventRecord(e, s); }
static void reach(Handle e, uint64_t number) {
  auto& x = events[e];
  if (x.number == number && !x.reached) drain(x.stream);
}
API cuStreamWaitEvent(Handle s, Handle e, unsigned) {
  LOCKED;
  LOG("stream %p waits for event %p", s, e);
  auto& x = events[e];
  auto& stream = streams[s];
  if (x.graph) {  // the stream is captured too
    if (graphs.find(x.graph) == graphs.end() || (stream.graph && stream.graph != x.graph)) return 905;
    stream.graph = x.graph;
    stream.last.insert(x.last.begin(), x.last.end());
    return 0;
  }
  if (stream.graph) return 905;
  if (!x.recorded) return 0;
  uint64_t number = x.number;
  enqueue(s, [=] { reach(e, number); });
  return 0;
}
API cuEventSynchronize(Handle e) {
  LOCKED;
  LOG("synchronize event %p", e);
  counts["wait"]++;
  reach(e, events[e].number);
  return result();
}
API cuEventQuery(Handle e) {
  LOCKED;
  return events[e].reached ? 0 : 600;
}
API cuEventDestroy_v2(Handle e) {
  LOCKED;
  if (events[e].recorded && !events[e].reached) drain(events[e].stream);
  events.erase(e);
  return 0;
}
API cuEventElapsedTime(float* ms, Handle a, Handle b) {
  LOCKED;
  if (!events[a].reached || !events[b].reached) return 600;
  *ms = (float)(events[b].time - events[a].time);
  return 0;
}

static Result load(Handle* m, const void* image) {
  LOCKED;
  *m = fresh();
  try {
    libraries[*m] = parse((const char*)image);
  } catch (std::exception& e) {
    fprintf(stderr, "CUDA emulator: %s\n", e.what());
    return 218;
  }
  return 0;
}
API cuModuleLoadDataEx(Handle* m, const void* image, unsigned, int*, void**) { return load(m, image); }
API cuModuleLoadData(Handle* m, const void* image) { return load(m, image); }
API cuLibraryLoadData(Handle* l, const void* image, void*, void*, unsigned, void*, void*, unsigned) {
  return load(l, image);
}
API cuModuleUnload(Handle) { return 0; }
API cuLibraryUnload(Handle) { return 0; }
API cuModuleGetFunction(Handle* f, Handle m, const char* name) {
  LOCKED;
  auto& kernels = libraries[m]->kernels;
  auto at = kernels.find(name);
  if (at == kernels.end()) return 500;
  *f = fresh();
  functions[*f] = at->second;
  LOG("function %p is %.90s", *f, name);
  return 0;
}
API cuLibraryGetKernel(Handle* f, Handle l, const char* name) { return cuModuleGetFunction(f, l, name); }
API cuKernelGetFunction(Handle* f, Handle k) {
  *f = k;
  return 0;
}
API cuModuleGetGlobal_v2(Pointer*, size_t*, Handle, const char*) { return 500; }
API cuFuncGetAttribute(int* v, int a, Handle f) {
  LOCKED;
  auto& k = functions[f];
  *v = a == 0    ? k->most_threads
       : a == 1  ? k->shared_bytes
       : a == 4  ? 64
       : a == 8  ? k->most_dynamic
       : a == 14 ? k->large_clusters : 0;
  return 0;
}
API cuKernelGetAttribute(int* v, int a, Handle f, int) { return cuFuncGetAttribute(v, a, f); }
API cuFuncSetAttribute(Handle f, int a, int v) {
  LOCKED;
  auto& k = functions[f];
  if (a == 8) {  // bytes of dynamic shared memory that a launch may ask for
    if (v + k->shared_bytes > MOST_SHARED) return 1;
    k->most_dynamic = v;
  }
  if (a == 14) k->large_clusters = v;
  return 0;
}
API cuKernelSetAttribute(int a, int v, Handle f, int) { return cuFuncSetAttribute(f, a, v); }
API cuFuncSetCacheConfig(Handle, int) { return 0; }
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, Handle, int, size_t) {
  *n = 2;
  return 0;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, Handle, int, size_t, unsigned) {
  *n = 2;
  return 0;
}
API cuOccupancyMaxPotentialBlockSize(int* g, int* b, Handle, void*, size_t, int) {
  *g = 8;
  *b = 256;
  return 0;
}

static bool cluster_allowed(const Kernel& kernel, Dim cluster) {
  return cluster.x <= (kernel.large_clusters ? MOST_CLUSTER : PORTABLE_CLUSTER) && cluster.y == 1 && cluster.z == 1;
}
static Result launch(Handle f, Dim grid, Dim block, unsigned shared, Handle s, void** arguments, bool cooperative,
                     Dim cluster = {1, 1, 1}) {
  LOCKED;
  Launch l{functions.at(f), grid, block, shared, cooperative, cluster.x > 1 ? cluster.x : 0, {}};
  bool one_line = !l.cluster || (grid.y == 1 && grid.z == 1);
  if (!one_line || !cluster_allowed(*l.kernel, cluster) || grid.x % cluster.x) return 912;  // the size of the cluster
  if ((int)shared > l.kernel->most_dynamic) return 1;
  l.parameters.resize(l.kernel->parameter_bytes);
  for (size_t i = 0; i < l.kernel->parameters.size(); i++) {
    auto& p = l.kernel->parameters[i];
    memcpy(l.parameters.data() + p.offset, arguments[i], p.size);
  }
  LOG("launch %.90s grid %u,%u,%u block %u,%u,%u cluster %u shared %u stream %p%s", l.kernel->name.c_str(), grid.x,
      grid.y, grid.z, block.x, block.y, block.z, cluster.x, shared, s, cooperative ? " cooperative" : "");
  enqueue(s, [l] { execute(l); }, "launch", l.kernel->name);
  return result();
}
API cuLaunchKernel(Handle f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, Handle s, void** a, void**) {
  return launch(f, {gx, gy, gz}, {bx, by, bz}, shared, s, a, false);
}
API cuLaunchCooperativeKernel(Handle f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                              unsigned shared, Handle s, void** a) {
  return launch(f, {gx, gy, gz}, {bx, by, bz}, shared, s, a, true);
}
struct Attribute {
  int id;
  char pad[4];
  char value[64];
};
struct Configuration {
  unsigned gx, gy, gz, bx, by, bz, shared;
  Handle stream;
  Attribute* attributes;
  unsigned count;
};
static Dim cluster_of(const Configuration* c) {
  Dim cluster = {1, 1, 1};
  for (unsigned i = 0; i < c->count; i++)
    if (c->attributes[i].id == 4) memcpy(&cluster, c->attributes[i].value, sizeof cluster);
  return cluster;
}
API cuOccupancyMaxActiveClusters(int* n, Handle f, const Configuration* c) {
  LOCKED;
  auto& k = functions.at(f);
  Dim cluster = cluster_of(c);
  *n = (int)c->shared <= k->most_dynamic ? ROOM / cluster.x : 0;
  return cluster_allowed(*k, cluster) ? 0 : 912;
}
API cuLaunchKernelEx(Configuration* c, Handle f, void** a, void**) {
  bool cooperative = false;
  Dim cluster = cluster_of(c);
  for (unsigned i = 0; i < c->count; i++)
    if (c->attributes[i].id == 2) cooperative = *(int*)c->attributes[i].value;
  return launch(f, {c->gx, c->gy, c->gz}, {c->bx, c->by, c->bz}, c->shared, c->stream, a, cooperative, cluster);
}

API cuStreamBeginCapture_v2(Handle s, int) {
  LOCKED;
  LOG("begin capture in stream %p", s);
  Handle g = fresh();
  streams[s].graph = g;
  streams[s].last.clear();
  graphs[g] = std::make_shared<Graph>();
  graphs[g]->origin = s;
  return 0;
}
API cuStreamEndCapture(Handle s, Handle* g) {
  LOCKED;
  *g = streams[s].graph;
  if (!*g) return 401;
  auto& graph = *graphs[*g];
  if (graph.origin != s) return 903;
  bool joined = true;
  for (auto& [o, x] : streams) {
    (void)o;
    if (x.graph != *g) continue;
    for (int node : x.last)
      joined &= std::any_of(streams[s].last.begin(), streams[s].last.end(), [&](int l) { return graph.follows(l, node); });
    x.graph = nullptr;
    if (o != s) x.last.clear();
  }
  LOG("end capture, %zu nodes, %d after one another", graph.nodes.size(), graph.path());
  if (!joined) return 904;
  counts["path"] += graph.path();
  return 0;
}
API cuStreamIsCapturing(Handle s, int* c) {
  LOCKED;
  *c = streams[s].graph != nullptr;
  return 0;
}
API cuStreamGetCaptureInfo_v2(Handle s, int* c, Pointer* id, Handle* g, void*, size_t* n) {
  LOCKED;
  *c = streams[s].graph != nullptr;
  if (id) *id = 1;
  if (g) *g = streams[s].graph;
  if (n) *n = 0;
  return 0;
}
API cuStreamGetCaptureInfo_v3(Handle s, int* c, Pointer* id, Handle* g, void* d, void*, size_t* n) {
  return cuStreamGetCaptureInfo_v2(s, c, id, g, d, n);
}
API cuThreadExchangeStreamCaptureMode(int*) { return 0; }
struct Instantiation {
  Pointer flags;
  Handle upload, node;
  int result;
};
API cuGraphInstantiateWithParams(Handle* x, Handle g, Instantiation* p) {
  LOCKED;
  *x = fresh();
  graphs[*x] = graphs[g];
  p->result = 0;
  return 0;
}
API cuGraphInstantiateWithFlags(Handle* x, Handle g, Pointer) {
  LOCKED;
  *x = fresh();
  graphs[*x] = graphs[g];
  return 0;
}
API cuGraphUpload(Handle, Handle) { return 0; }
API cuGraphLaunch(Handle x, Handle s) {
  LOCKED;
  LOG("launch graph in stream %p", s);
  auto g = graphs[x];
  enqueue(s, [g] { run(*g); }, "replay");
  return result();
}
API cuGraphExecDestroy(Handle x) {
  LOCKED;
  graphs.erase(x);
  return 0;
}
API cuGraphDestroy(Handle g) {
  LOCKED;
  graphs.erase(g);
  return 0;
}

API cuUserObjectCreate(Handle* o, void*, void*, unsigned, unsigned) {
  *o = fresh();
  return 0;
}
API cuUserObjectRelease(Handle, unsigned) { return 0; }
API cuUserObjectRetain(Handle, unsigned) { return 0; }
API cuGraphRetainUserObject(Handle, Handle, unsigned, unsigned) { return 0; }
API cuGraphReleaseUserObject(Handle, Handle, unsigned) { return 0; }

API cuGetErrorName(Result e, const char** s) {
  *s = e == 1     ? "CUDA_ERROR_INVALID_VALUE"
       : e == 2   ? "CUDA_ERROR_OUT_OF_MEMORY"
       : e == 912 ? "CUDA_ERROR_INVALID_CLUSTER_SIZE"
       : e == 904 ? "CUDA_ERROR_STREAM_CAPTURE_UNJOINED"
       : e == 905 ? "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"
       : e == 719 ? "CUDA_ERROR_LAUNCH_FAILED" : "CUDA_ERROR";
  return 0;
}
API cuGetErrorString(Result e, const char** s) {
  *s = e == 719 ? failure.c_str() : e == 2 ? "out of memory" : "error";
  return 0;
}
API cuDeviceGetPCIBusId(char* s, int n, int) {
  strncpy(s, "0000:00:00.0", n);
  return 0;
}
API cuDeviceGetDefaultMemPool(Handle* p, int) {
  *p = (Handle)0x5000;
  return 0;
}
API cuDeviceGetMemPool(Handle* p, int) {
  *p = (Handle)0x5000;
  return 0;
}
API cuMemPoolSetAttribute(Handle, int, void*) { return 0; }
API cuMemPoolGetAttribute(Handle, int, void* v) {
  *(Pointer*)v = 0;
  return 0;
}
API cuKernelGetLibrary(Handle* l, Handle) {
  *l = (Handle)1;
  return 0;
}
API cuProfilerStart(void) { return 0; }

// Functions that are not here: each a stub that names itself.
static std::vector<std::string> missing_names;
template <int N>
Result missing() {
  fprintf(stderr, "CUDA emulator: %s is not emulated\n", missing_names[N].c_str());
  return 801;
}
template <int... N>
static std::vector<Result (*)()> make_stubs(std::integer_sequence<int, N...>) {
  return {missing<N>...};
}
static std::vector<Result (*)()> stubs = make_stubs(std::make_integer_sequence<int, 900>());
API cuGetProcAddress_v2(const char* name, void** p, int version, Pointer, int* status) {
  static Handle self = [] {
    Dl_info info;
    dladdr((void*)cuInit, &info);
    return dlopen(info.dli_fname, RTLD_NOW);
  }();
  *p = nullptr;
  std::string s = name;
  if (s == "cuStreamGetCaptureInfo" && version >= 13000) s += "_v3";
  for (auto suffix : {"_v3", "_v2", ""})
    if (!*p) *p = dlsym(self, (s + suffix).c_str());
  if (!*p) {
    *p = (void*)stubs.at(missing_names.size());
    missing_names.push_back(name);
  }
  if (status) *status = 0;
  return 0;
}
API cuGetProcAddress(const char* name, void** p, int version, Pointer flags) {
  return cuGetProcAddress_v2(name, p, version, flags, nullptr);
}

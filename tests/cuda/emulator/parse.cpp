// PTX text to decoded instructions.
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <sstream>

#include "ptx.hpp"

namespace emulator {
namespace {

std::string without_comments(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); i++) {
    if (text[i] == '/' && text[i + 1] == '/') {
      while (i < text.size() && text[i] != '\n') i++;
      out += '\n';
    } else if (text[i] == '/' && text[i + 1] == '*') {
      while (!(text[i] == '*' && text[i + 1] == '/')) i++;
      i++;
    } else {
      out += text[i];
    }
  }
  return out;
}

std::string strip(const std::string& s) {
  size_t a = 0, b = s.size();
  while (a < b && isspace((unsigned char)s[a])) a++;
  while (b > a && isspace((unsigned char)s[b - 1])) b--;
  return s.substr(a, b - a);
}

std::vector<std::string> split(const std::string& s, char at) {
  std::vector<std::string> out;
  std::string part;
  int depth = 0;
  for (char c : s) {
    if (c == '{' || c == '[' || c == '(') depth++;
    if (c == '}' || c == ']' || c == ')') depth--;
    if (c == at && depth == 0) {
      out.push_back(strip(part));
      part.clear();
    } else {
      part += c;
    }
  }
  if (!strip(part).empty()) out.push_back(strip(part));
  return out;
}

const std::map<std::string, Type> TYPES = {{"pred", PRED}, {"b8", B8},   {"b16", B16}, {"b32", B32}, {"b64", B64},
                                           {"u8", U8},     {"u16", U16}, {"u32", U32}, {"u64", U64}, {"s8", S8},
                                           {"s16", S16},   {"s32", S32}, {"s64", S64}, {"f16", F16}, {"bf16", BF16},
                                           {"f32", F32},   {"f64", F64}, {"tf32", B32}};

struct Parser {
  Kernel& kernel;
  std::map<std::string, int> registers, labels;
  const std::map<std::string, uint64_t>& symbols;  // of shared memory, in its window
  std::map<std::string, int> scratch;              // parameters of calls
  std::vector<std::pair<int, std::string>> jumps;
  std::function<void(const std::string&)> declare;  // an array in shared memory

  [[noreturn]] void fail(const std::string& what, const std::string& statement) {
    throw std::runtime_error("PTX: " + what + " in: " + statement);
  }

  int reg(const std::string& name) { return registers.try_emplace(name, (int)registers.size()).first->second; }

  bool is_register(const std::string& s) {
    if (s.empty()) return false;
    return s[0] == '%' || (registers.count(s) != 0);
  }

  Operand operand(const std::string& text, Type type) {
    Operand o;
    std::string s = strip(text);
    if (s.rfind("0f", 0) == 0 || s.rfind("0F", 0) == 0) {
      o.value = strtoull(s.substr(2).c_str(), nullptr, 16);
    } else if (s.rfind("0d", 0) == 0 || s.rfind("0D", 0) == 0) {
      o.value = strtoull(s.substr(2).c_str(), nullptr, 16);
    } else if (isdigit((unsigned char)s[0]) || s[0] == '-') {
      o.value = s[0] == '-' ? (uint64_t)strtoll(s.c_str(), nullptr, 0) : strtoull(s.c_str(), nullptr, 0);
      if (type == F32) {
        float f = (float)atof(s.c_str());
        uint32_t b;
        memcpy(&b, &f, 4);
        o.value = b;
      }
      if (type == F64) {
        double f = atof(s.c_str());
        memcpy(&o.value, &f, 8);
      }
    } else if (symbols.count(s)) {
      o.value = symbols.at(s);
      o.shared = true;
    } else if (is_register(s)) {
      o.immediate = false;
      o.index = reg(s);
    } else {
      fail("unknown operand " + s, text);
    }
    return o;
  }

  std::vector<Operand> operands(const std::string& text, Type type) {
    std::string s = strip(text);
    if (s[0] != '{') return {operand(s, type)};
    std::vector<Operand> out;
    for (auto& part : split(s.substr(1, s.size() - 2), ',')) out.push_back(operand(part, type));
    return out;
  }

  // "[%rd1+16]", "[symbol+8]", "[name_param_3]"
  Operand address(const std::string& text) {
    std::string s = strip(text);
    if (s[0] != '[') fail("no address", text);
    s = s.substr(1, s.size() - 2);
    int64_t offset = 0;
    size_t plus = s.find('+');
    if (plus != std::string::npos) {
      offset = strtoll(s.substr(plus + 1).c_str(), nullptr, 0);
      s = strip(s.substr(0, plus));
    }
    for (auto& p : kernel.parameters)
      if (p.name == s) {
        Operand o;
        o.value = p.offset + offset;
        return o;
      }
    if (scratch.count(s)) {
      Operand o;
      o.value = kernel.parameter_bytes + scratch[s] + offset;
      return o;
    }
    Operand o = operand(s, U64);
    if (o.immediate) o.value += offset;
    else o.value = offset;
    return o;
  }

  void statement(std::string s) {
    s = strip(s);
    while (!s.empty() && (s[0] == '{' || s[0] == '}')) s = strip(s.substr(1));
    for (;;) {  // labels
      size_t i = 0;
      while (i < s.size() && (isalnum((unsigned char)s[i]) || s[i] == '_' || s[i] == '$')) i++;
      if (i > 0 && i < s.size() && s[i] == ':') {
        labels[s.substr(0, i)] = (int)kernel.code.size();
        s = strip(s.substr(i + 1));
        while (!s.empty() && (s[0] == '{' || s[0] == '}')) s = strip(s.substr(1));
      } else {
        break;
      }
    }
    if (s.empty()) return;
    if (s[0] == '.') return directive(s);
    Instruction in;
    in.line = (int)kernel.lines.size();
    std::string whole = s;
    if (s[0] == '@') {
      s = s.substr(1);
      if (s[0] == '!') {
        in.negated = true;
        s = s.substr(1);
      }
      size_t end = s.find_first_of(" \t");
      in.guard = reg(s.substr(0, end));
      s = strip(s.substr(end));
    }
    size_t end = s.find_first_of(" \t\n");
    std::string name = s.substr(0, end), rest = end == std::string::npos ? "" : strip(s.substr(end));
    std::vector<std::string> words;
    {
      std::stringstream stream(name);
      std::string w;
      while (std::getline(stream, w, '.')) words.push_back(w);
    }
    decode(in, words, rest, whole);
    if (in.op != NOP) {
      for (auto& c : whole)
        if (c == '\n' || c == '\t') c = ' ';
      kernel.lines.push_back(whole);
      kernel.code.push_back(in);
    }
  }

  void directive(const std::string& s) {
    if (s.rfind(".reg", 0) == 0) {
      for (auto& name : split(strip(s.substr(s.find_first_of(" \t", 5))), ',')) {
        size_t sharp = name.find('<');
        if (sharp == std::string::npos) reg(strip(name));
      }
    } else if (s.rfind(".param", 0) == 0) {
      std::string name = s.substr(s.find_last_of(" \t") + 1);
      size_t bracket = name.find('[');
      name = name.substr(0, bracket);
      if (!scratch.count(name)) scratch[name] = 16 * (int)scratch.size();
    } else if (s.rfind(".shared", 0) == 0) {
      declare(s);
    } else if (s.rfind(".pragma", 0) == 0 || s.rfind(".loc", 0) == 0) {
    } else {
      fail("unknown directive", s);
    }
  }

  void decode(Instruction& in, std::vector<std::string>& w, const std::string& rest, const std::string& whole) {
    auto has = [&](const char* x) {
      for (auto& y : w)
        if (y == x) return true;
      return false;
    };
    std::vector<Type> types;
    for (size_t i = 1; i < w.size(); i++)
      if (TYPES.count(w[i])) types.push_back(TYPES.at(w[i]));
    in.type = types.empty() ? NONE : types.back();
    for (auto& x : w) {
      if (x == "rn") in.rounding = RN;
      else if (x == "rz") in.rounding = RZ;
      else if (x == "rni") in.rounding = RNI;
      else if (x == "rzi") in.rounding = RZI;
      else if (x == "rmi") in.rounding = RMI;
      else if (x == "rpi") in.rounding = RPI;
      else if (x == "rna") in.rounding = RNA;
      if (x == "global") in.space = GLOBAL;
      else if (x == "shared" || x == "shared::cta") in.space = SHARED;
      else if (x == "shared::cluster") in.space = CLUSTER;
      else if (x == "param") in.space = PARAM;
      else if (x == "local") in.space = LOCAL;
      if (x == "v2") in.vector = 2;
      else if (x == "v4") in.vector = 4;
      if (x == "trans") in.transposed = true;
      if (x == "ftz" || x == "approx" || x == "sat") fail("not IEEE arithmetic", whole);
    }
    const std::string& op = w[0];
    auto parts = split(rest, ',');
    auto simple = [&](Op code, Type of = NONE) {
      in.op = code;
      if (of != NONE) in.type = of;
      in.d = {operand(parts[0], in.type)};
      for (size_t i = 1; i < parts.size(); i++) in.s.push_back(operand(parts[i], in.type));
    };
    static const std::map<std::string, Op> PLAIN = {
        {"add", ADD}, {"sub", SUB},   {"fma", FMA},   {"div", DIV},   {"rem", REM}, {"min", MIN},
        {"max", MAX}, {"abs", ABS},   {"neg", NEG},   {"not", NOT},   {"and", AND}, {"or", OR},
        {"xor", XOR}, {"shl", SHL},   {"shr", SHR},   {"selp", SELP}, {"rcp", RCP}, {"sqrt", SQRT},
        {"clz", CLZ}, {"popc", POPC}, {"prmt", PRMT}, {"bfe", BFE}};
    if (PLAIN.count(op)) return simple(PLAIN.at(op));
    if (op == "mul") return simple(has("hi") ? MUL_HI : has("wide") ? MUL_WIDE : MUL_LO);
    if (op == "mad") return simple(has("wide") ? MAD_WIDE : MAD_LO);
    if (op == "cvta") return simple(MOV, U64);
    if (op == "mov") {
      if (parts[0][0] == '{') {
        in.op = MOV_UNPACK;
        in.d = operands(parts[0], NONE);
        in.s = {operand(parts[1], in.type)};
        return;
      }
      if (parts[1][0] == '{') {
        in.op = MOV_PACK;
        in.d = {operand(parts[0], NONE)};
        in.s = operands(parts[1], NONE);
        return;
      }
      return simple(MOV);
    }
    if (op == "setp") {
      static const std::map<std::string, Compare> C = {
          {"eq", EQ},   {"ne", NE},   {"lt", LT},   {"le", LE},   {"gt", GT},   {"ge", GE},
          {"lo", LT},   {"ls", LE},   {"hi", GT},   {"hs", GE},   {"equ", EQU}, {"neu", NEU},
          {"ltu", LTU}, {"leu", LEU}, {"gtu", GTU}, {"geu", GEU}, {"num", NUM}, {"nan", NAN_}};
      in.compare = C.at(w[1]);
      if (parts.size() != 3) fail("setp with a combination", whole);
      return simple(SETP);
    }
    if (op == "cvt") {
      in.type = types[0];
      in.from = types.back();
      if (w.size() > 2 && (has("bf16x2") || has("f16x2"))) {
        in.op = CVT_PAIR;
        in.type = has("bf16x2") ? BF16 : F16;
        in.d = {operand(parts[0], B32)};
        in.s = {operand(parts[1], F32), operand(parts[2], F32)};
        return;
      }
      if (has("tf32") && in.rounding != RNA && in.rounding != RN) fail("tf32 rounding", whole);
      in.op = CVT;
      in.d = {operand(parts[0], in.type)};
      in.s = {operand(parts[1], in.from)};
      if (has("tf32")) {
        in.to_tf32 = true;
        in.type = F32;
      }
      return;
    }
    if (op == "ld" || op == "ldu") {
      in.op = in.space == PARAM ? LD_PARAM : LD;
      in.d = operands(parts[0], in.type);
      in.s = {address(parts[1])};
      return;
    }
    if (op == "st") {
      in.op = in.space == PARAM ? ST_PARAM : ST;
      in.d = {address(parts[0])};
      in.s = operands(parts[1], in.type);
      return;
    }
    if (op == "bra") {
      in.op = BRA;
      jumps.push_back({(int)kernel.code.size(), strip(rest)});
      return;
    }
    if (op == "ret" || op == "exit") {
      in.op = RET;
      return;
    }
    if (op == "mapa") {
      if (!has("shared::cluster") || !has("u32")) fail("mapa", whole);
      return simple(MAPA, U32);
    }
    if (op == "barrier" && has("cluster")) {
      if (has("relaxed")) fail("a barrier that orders no memory", whole);
      if (!has("arrive") && !has("wait")) fail("barrier", whole);
      in.op = has("arrive") ? CLUSTER_ARRIVE : CLUSTER_WAIT;
      return;
    }
    if (op == "bar" || op == "barrier") {
      if (has("warp")) {
        in.op = WARP_SYNC;
        return;
      }
      if (!has("sync") || parts.size() != 1 || strip(parts[0]) != "0") fail("barrier", whole);
      in.op = BAR;
      return;
    }
    if (op == "fence" && has("proxy")) {
      if (!has("async")) fail("proxy", whole);
      in.op = FENCE_PROXY;
      return;
    }
    if (op == "membar" || op == "fence") return;
    if (op == "mbarrier") {
      kernel.asynchronous = true;
      bool in_cluster = has("arrive") && has("shared::cluster");
      if (!(has("shared::cta") || in_cluster) || has("relaxed") || !has("b64")) fail("mbarrier", whole);
      if (has("init")) {
        in.op = MBARRIER_INIT;
        in.s = {address(parts[0]), operand(parts[1], U32)};
      } else if (has("arrive")) {
        in.op = MBARRIER_ARRIVE;
        if (parts[0] != "_" || (parts.size() == 3) != has("expect_tx")) fail("mbarrier", whole);
        in.s = {address(parts[1])};
        if (has("expect_tx")) in.s.push_back(operand(parts[2], U32));
      } else if (has("try_wait") && has("parity") && parts.size() == 3) {
        in.op = MBARRIER_WAIT;
        in.d = {operand(parts[0], PRED)};
        in.s = {address(parts[1]), operand(parts[2], U32)};
      } else fail("mbarrier", whole);
      return;
    }
    if (op == "setmaxnreg") {
      in.op = SET_REGISTERS;
      in.more = has("inc");
      in.s = {operand(parts[0], U32)};
      return;
    }
    if (op == "wgmma") {
      if (has("fence")) in.op = WGMMA_FENCE;
      else if (has("commit_group")) in.op = WGMMA_COMMIT;
      else if (has("wait_group")) {
        in.op = WGMMA_WAIT;
        in.s = {operand(parts[0], U32)};
      } else {
        in.op = WGMMA;
        in.from = has("bf16") ? BF16 : B32;
        std::string terms = in.from == BF16 ? "k16.f32.bf16.bf16" : "k8.f32.tf32.tf32";
        size_t along_k = in.from == BF16 ? 2 : 0;  // TF32 has no other way
        if (sscanf(w[4].c_str(), "m64n%d", &in.columns) != 1) fail("wgmma", whole);
        if (whole.find(".m64n" + std::to_string(in.columns) + terms) == std::string::npos) fail("wgmma", whole);
        in.d = operands(parts[0], F32);
        if ((int)in.d.size() != in.columns / 2 || parts.size() != 6 + along_k) fail("wgmma", whole);
        in.s = {operand(parts[1], B64), operand(parts[2], B64)};
        const char* added_and_along_k[] = {"1", "1", "1", "0", "0"};
        for (size_t i = 0; i < 3 + along_k; i++)
          if (parts[3 + i] != added_and_along_k[i]) fail("wgmma", whole);
      }
      return;
    }
    if (op == "call") {
      std::string callee;
      for (auto& part : parts)
        if (part[0] != '(') callee = part;
      if (callee == "cudaCGGetIntrinsicHandle") {
        in.op = CALL_GRID_HANDLE;
      } else if (callee == "cudaCGSynchronize") {
        in.op = CALL_GRID_SYNC;
      } else fail("call of " + callee, whole);
      std::string result = strip(parts[0].substr(1, parts[0].size() - 2));
      Operand o;
      o.value = kernel.parameter_bytes + scratch.at(result);
      in.d = {o};
      return;
    }
    if (op == "mma") {
      in.op = MMA;
      in.from = has("bf16") ? BF16 : B32;
      if (!has(has("bf16") ? "m16n8k16" : "m16n8k8") || (!has("bf16") && !has("tf32"))) fail("mma shape", whole);
      in.d = operands(parts[0], F32);
      for (int i = 1; i < 4; i++)
        for (auto& o : operands(parts[i], F32)) in.s.push_back(o);
      return;
    }
    if (op == "ldmatrix") {
      in.op = LDMATRIX;
      in.d = operands(parts[0], B32);
      in.s = {address(parts[1])};
      return;
    }
    if (op == "cp") {
      if (has("commit_group")) {
        in.op = CP_COMMIT;
        return;
      }
      if (has("wait_group")) {
        in.op = CP_WAIT;
        in.d = {operand(parts[0], U32)};
        return;
      }
      if (has("wait_all")) {
        in.op = CP_WAIT;
        Operand o;
        in.d = {o};
        return;
      }
      if (has("bulk")) {
        if (!has("shared::cluster") || !has("global") || !has("mbarrier::complete_tx::bytes")) fail("cp", whole);
        in.op = BULK_COPY;
        in.d = {address(parts[0])};
        in.s = {address(parts[1]), operand(parts[2], U32), address(parts[3])};
        if ((parts.size() == 5) != has("multicast::cluster")) fail("cp", whole);
        if (parts.size() == 5) in.s.push_back(operand(parts[4], U32));
        return;
      }
      if (!has("async") || !has("global")) fail("cp", whole);
      in.op = CP_ASYNC;
      in.d = {address(parts[0])};
      in.s = {address(parts[1]), operand(parts[2], U32)};
      if (parts.size() > 3) in.s.push_back(operand(parts[3], U32));
      return;
    }
    fail("unknown instruction", whole);
  }
};

}  // namespace

std::shared_ptr<Module> parse(const std::string& raw) {
  auto module = std::make_shared<Module>();
  std::string text = without_comments(raw);
  std::map<std::string, uint64_t> symbols;
  int shared = 0;
  std::vector<std::string> dynamic;  // arrays whose size the launch says: they all begin after the others
  int dynamic_align = 1;
  size_t i = 0;
  // Declarations, outside of functions or in one.
  auto declare = [&](const std::string& s) {
    bool is_shared = s.find(".shared") != std::string::npos;
    if (!is_shared) return;
    int align = 16, bytes = 0;
    size_t at = s.find(".align");
    if (at != std::string::npos) align = atoi(s.c_str() + at + 6);
    size_t bracket = s.rfind('[');
    size_t name = s.find_last_of(" \t", bracket) + 1;
    bytes = atoi(s.c_str() + bracket + 1);
    if (s.find(".extern") != std::string::npos) {
      dynamic.push_back(s.substr(name, bracket - name));
      dynamic_align = std::max(dynamic_align, align);
      return;
    }
    shared = (shared + align - 1) / align * align;
    symbols[s.substr(name, bracket - name)] = shared;
    shared += bytes;
  };
  while (i < text.size()) {
    size_t entry = text.find(".entry", i), semi = text.find(';', i);
    if (entry == std::string::npos && semi == std::string::npos) break;
    if (semi < entry) {
      declare(text.substr(i, semi - i));
      i = semi + 1;
      continue;
    }
    auto kernel = std::make_shared<Kernel>();
    size_t open = text.find('(', entry), close = text.find(')', open), body = text.find('{', close);
    kernel->name = strip(text.substr(entry + 6, open - entry - 6));
    for (auto& p : split(text.substr(open + 1, close - open - 1), ',')) {
      std::stringstream stream(p);
      std::string word, type, name;
      int align = 0;
      while (stream >> word) {
        if (word == ".param") continue;
        if (word == ".align") {
          stream >> align;
          continue;
        }
        if (word[0] == '.' && TYPES.count(word.substr(1))) type = word.substr(1);
        else name = word;
      }
      int size = size_of(TYPES.at(type));
      size_t bracket = name.find('[');
      if (bracket != std::string::npos) {
        size *= atoi(name.c_str() + bracket + 1);
        name = name.substr(0, bracket);
      }
      int to = align ? align : size;
      kernel->parameter_bytes = (kernel->parameter_bytes + to - 1) / to * to;
      kernel->parameters.push_back({name, size, kernel->parameter_bytes});
      kernel->parameter_bytes += size;
    }
    kernel->parameter_bytes = (kernel->parameter_bytes + 15) / 16 * 16;
    std::string head = text.substr(close, body - close);
    size_t most = head.find(".maxntid");
    if (most != std::string::npos) {
      int x = 1, y = 1, z = 1;
      sscanf(head.c_str() + most + 8, " %d , %d , %d", &x, &y, &z);
      kernel->most_threads = x * y * z;
    }
    size_t end = body;
    int depth = 0;
    for (end = body; end < text.size(); end++) {
      if (text[end] == '{') depth++;
      if (text[end] == '}' && --depth == 0) break;
    }
    for (auto& name : dynamic) symbols[name] = (shared + dynamic_align - 1) / dynamic_align * dynamic_align;
    Parser parser{*kernel, {}, {}, symbols, {}, {}, declare};
    std::string part;
    for (size_t q = body + 1; q < end; q++) {
      if (text[q] == ';') {
        parser.statement(part);
        part.clear();
      } else part += text[q];
    }
    parser.statement(part);
    kernel->code.push_back({});
    kernel->code.back().op = RET;
    kernel->lines.push_back("(end)");
    for (auto& [at, label] : parser.jumps) {
      if (!parser.labels.count(label)) throw std::runtime_error("PTX: no label " + label);
      kernel->code[at].target = parser.labels[label];
    }
    kernel->registers = (int)parser.registers.size();
    kernel->local_bytes = 16 * (int)parser.scratch.size();
    for (auto& [name, index] : parser.registers) {
      static const char* SPECIAL[] = {"%tid.x",    "%tid.y",    "%tid.z",   "%ntid.x",  "%ntid.y",
                                      "%ntid.z",   "%ctaid.x",  "%ctaid.y", "%ctaid.z", "%nctaid.x",
                                      "%nctaid.y", "%nctaid.z", "%laneid",  "%cluster_ctarank",
                                      "%cluster_nctarank", "%clusterid.x", "%dynamic_smem_size"};
      for (int s = 0; s < (int)(sizeof SPECIAL / sizeof *SPECIAL); s++)
        if (name == SPECIAL[s]) kernel->special.push_back({s, index});
      if (name[0] == '%' && name.find_first_of("._") != std::string::npos) {
        bool known = false;
        for (auto x : SPECIAL) known |= name == x;
        if (!known) throw std::runtime_error("PTX: special register " + name);
      }
    }
    module->kernels[kernel->name] = kernel;
    i = end + 1;
  }
  for (auto& kernel : module->kernels) kernel.second->shared_bytes = shared;
  return module;
}

}  // namespace emulator

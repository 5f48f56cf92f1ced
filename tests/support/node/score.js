// Scores one group with nothing but the .proto: node score.js PROTO_FOLDER ENDPOINT; prints the responses as JSON.
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [folder, endpoint] = process.argv.slice(2);
const definition = loader.loadSync(path.join(folder, "reward_server/v1/reward.proto"), {
  enums: String,
  keepCase: true,
  longs: Number,
});
const { RewardService } = grpc.loadPackageDefinition(definition).reward_server.v1;
const client = new RewardService(endpoint, grpc.credentials.createInsecure());
const deadline = () => ({ deadline: Date.now() + 20_000 });

const group = {
  wire_version: 1,
  run_id: "node",
  step: 3,
  group_id: "from-node",
  prompt: { text: "What is 6 × 7?" },
  completions: [
    { content: { text: "42" } },
    { content: { json: JSON.stringify([{ role: "assistant", content: "forty-two ✓" }]) } },
    { content: { text: "fail" } },
  ],
  columns_json: JSON.stringify({ answer: "42", nested: [[1, null], { é: true }] }),
};

client.GetServerInfo({ wire_version: 1 }, deadline(), (infoError, info) => {
  if (infoError) throw infoError;
  client.ScoreGroup(group, deadline(), (error, scores) => {
    if (error) throw error;
    client.ScoreGroup({ ...group, wire_version: 9 }, deadline(), (refusal) => {
      console.log(JSON.stringify({ info, scores, refusal: { code: refusal.code, details: refusal.details } }));
      client.close();
    });
  });
});

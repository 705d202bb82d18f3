module @jit__lambda attributes {mhlo.num_partitions = 4 : i32, mhlo.num_replicas = 1 : i32} {
  sdy.mesh @mesh = <["tp"=4]> {stablehlo.mesh = {axes = [{name = "tp", size = 4 : i64}]}}
  func.func public @main(%arg0: tensor<1x4x64x8xf32>, %arg1: tensor<1x4x64x8xf32>, %arg2: tensor<32x1x1xf32>, %arg3: tensor<32x1x1xf32>, %arg4: tensor<1x4x8x64xf32>, %arg5: tensor<1x4x8x64xf32>, %arg6: tensor<512x128xf32>, %arg7: tensor<512x128xf32>, %arg8: tensor<1x128xf32>, %arg9: tensor<1x128xf32>, %arg10: tensor<1x128xf32>, %arg11: tensor<1x128xf32>, %arg12: tensor<128x512xf32>, %arg13: tensor<128x512xf32>, %arg14: tensor<256x128xf32>, %arg15: tensor<256x128xf32>, %arg16: tensor<128x768xf32>, %arg17: tensor<128x768xf32>, %arg18: tensor<128x512xf32>, %arg19: tensor<128x512xf32>, %arg20: tensor<1x1x128xf32>, %arg21: tensor<8x1x4x1xi1>, %arg22: tensor<1x1xi32>) -> (tensor<1x1x128xf32> {jax.result_info = "result[0]"}, tensor<1x4x64x8xf32> {jax.result_info = "result[1][0]"}, tensor<1x4x64x8xf32> {jax.result_info = "result[1][1]"}, tensor<1x4x8x64xf32> {jax.result_info = "result[2][0]"}, tensor<1x4x8x64xf32> {jax.result_info = "result[2][1]"}) {
    %0:5 = sdy.manual_computation(%arg0, %arg1, %arg2, %arg3, %arg4, %arg5, %arg6, %arg7, %arg8, %arg9, %arg10, %arg11, %arg12, %arg13, %arg14, %arg15, %arg16, %arg17, %arg18, %arg19, %arg20, %arg21, %arg22) in_shardings=[<@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {}, {}]>, <@mesh, [{}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{"tp"}, {}]>, <@mesh, [{"tp"}, {}]>, <@mesh, [{}, {}]>, <@mesh, [{}, {}]>, <@mesh, [{}, {}]>, <@mesh, [{}, {}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{"tp"}, {}]>, <@mesh, [{"tp"}, {}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{}, {}, {}]>, <@mesh, [{}, {}, {"tp"}, {}]>, <@mesh, [{}, {}]>] out_shardings=[<@mesh, [{}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>] manual_axes={"tp"} (%arg23: tensor<1x1x64x8xf32>, %arg24: tensor<1x1x64x8xf32>, %arg25: tensor<32x1x1xf32>, %arg26: tensor<32x1x1xf32>, %arg27: tensor<1x1x8x64xf32>, %arg28: tensor<1x1x8x64xf32>, %arg29: tensor<128x128xf32>, %arg30: tensor<128x128xf32>, %arg31: tensor<1x128xf32>, %arg32: tensor<1x128xf32>, %arg33: tensor<1x128xf32>, %arg34: tensor<1x128xf32>, %arg35: tensor<128x128xf32>, %arg36: tensor<128x128xf32>, %arg37: tensor<64x128xf32>, %arg38: tensor<64x128xf32>, %arg39: tensor<128x192xf32>, %arg40: tensor<128x192xf32>, %arg41: tensor<128x128xf32>, %arg42: tensor<128x128xf32>, %arg43: tensor<1x1x128xf32>, %arg44: tensor<8x1x1x1xi1>, %arg45: tensor<1x1xi32>) {
      %1 = stablehlo.slice %arg44 [0:7, 0:1, 0:1, 0:1] : (tensor<8x1x1x1xi1>) -> tensor<7x1x1x1xi1>
      %2 = stablehlo.convert %1 : (tensor<7x1x1x1xi1>) -> tensor<7x1x1x1xi32>
      %c = stablehlo.constant dense<0> : tensor<i32>
      %3 = stablehlo.broadcast_in_dim %c, dims = [] : (tensor<i32>) -> tensor<7x1x1x1xi32>
      %4 = stablehlo.compare NE, %2, %3, SIGNED : (tensor<7x1x1x1xi32>, tensor<7x1x1x1xi32>) -> tensor<7x1x1x1xi1>
      %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
      %cst_0 = stablehlo.constant dense<-1.2676506E+30> : tensor<f32>
      %5 = func.call @_where(%4, %cst, %cst_0) : (tensor<7x1x1x1xi1>, tensor<f32>, tensor<f32>) -> tensor<7x1x1x1xf32>
      %6 = stablehlo.convert %5 : (tensor<7x1x1x1xf32>) -> tensor<7x1x1x1xbf16>
      %7 = stablehlo.reshape %6 : (tensor<7x1x1x1xbf16>) -> tensor<7x1xbf16>
      %8 = stablehlo.slice %arg44 [7:8, 0:1, 0:1, 0:1] : (tensor<8x1x1x1xi1>) -> tensor<1x1x1x1xi1>
      %9 = stablehlo.iota dim = 0 : tensor<1x1xi32>
      %10 = stablehlo.iota dim = 1 : tensor<1x1xi32>
      %c_1 = stablehlo.constant dense<0> : tensor<i32>
      %11 = stablehlo.broadcast_in_dim %c_1, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
      %12 = stablehlo.add %9, %11 : tensor<1x1xi32>
      %13 = stablehlo.compare EQ, %12, %10, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
      %14 = stablehlo.broadcast_in_dim %13, dims = [0, 2] : (tensor<1x1xi1>) -> tensor<1x1x1x1x1xi1>
      %15 = stablehlo.convert %8 : (tensor<1x1x1x1xi1>) -> tensor<1x1x1x1xi32>
      %c_2 = stablehlo.constant dense<0> : tensor<i32>
      %16 = stablehlo.broadcast_in_dim %c_2, dims = [] : (tensor<i32>) -> tensor<1x1x1x1xi32>
      %17 = stablehlo.compare NE, %15, %16, SIGNED : (tensor<1x1x1x1xi32>, tensor<1x1x1x1xi32>) -> tensor<1x1x1x1xi1>
      %18 = stablehlo.broadcast_in_dim %17, dims = [1, 2, 3, 4] : (tensor<1x1x1x1xi1>) -> tensor<1x1x1x1x1xi1>
      %c_3 = stablehlo.constant dense<false> : tensor<i1>
      %19 = stablehlo.broadcast_in_dim %c_3, dims = [] : (tensor<i1>) -> tensor<1x1x1x1x1xi1>
      %20 = stablehlo.compare NE, %18, %19, UNSIGNED : (tensor<1x1x1x1x1xi1>, tensor<1x1x1x1x1xi1>) -> tensor<1x1x1x1x1xi1>
      %21 = stablehlo.convert %20 : tensor<1x1x1x1x1xi1>
      %22 = stablehlo.and %14, %21 : tensor<1x1x1x1x1xi1>
      %cst_4 = stablehlo.constant dense<0.000000e+00> : tensor<f32>
      %cst_5 = stablehlo.constant dense<-1.2676506E+30> : tensor<f32>
      %23 = func.call @_where_0(%22, %cst_4, %cst_5) : (tensor<1x1x1x1x1xi1>, tensor<f32>, tensor<f32>) -> tensor<1x1x1x1x1xf32>
      %24 = stablehlo.convert %23 : (tensor<1x1x1x1x1xf32>) -> tensor<1x1x1x1x1xbf16>
      %25 = stablehlo.reshape %24 : (tensor<1x1x1x1x1xbf16>) -> tensor<1x1xbf16>
      %c_6 = stablehlo.constant dense<0> : tensor<i32>
      %26 = stablehlo.broadcast_in_dim %c_6, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
      %27 = stablehlo.compare GE, %arg45, %26, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
      %c_7 = stablehlo.constant dense<8> : tensor<i32>
      %28 = stablehlo.broadcast_in_dim %c_7, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
      %29 = stablehlo.compare LT, %arg45, %28, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
      %30 = stablehlo.and %27, %29 : tensor<1x1xi1>
      %c_8 = stablehlo.constant dense<8> : tensor<i32>
      %31 = func.call @_where_1(%30, %arg45, %c_8) : (tensor<1x1xi1>, tensor<1x1xi32>, tensor<i32>) -> tensor<1x1xi32>
      %32 = stablehlo.broadcast_in_dim %31, dims = [0, 1] : (tensor<1x1xi32>) -> tensor<1x1x1xi32>
      %33 = stablehlo.broadcast_in_dim %31, dims = [0, 2] : (tensor<1x1xi32>) -> tensor<1x1x1xi32>
      %34 = stablehlo.compare EQ, %32, %33, SIGNED : (tensor<1x1x1xi32>, tensor<1x1x1xi32>) -> tensor<1x1x1xi1>
      %35 = func.call @triu(%34) : (tensor<1x1x1xi1>) -> tensor<1x1x1xi1>
      %c_9 = stablehlo.constant dense<false> : tensor<i1>
      %36 = stablehlo.reduce(%35 init: %c_9) applies stablehlo.or across dimensions = [2] : (tensor<1x1x1xi1>, tensor<i1>) -> tensor<1x1xi1>
      %c_10 = stablehlo.constant dense<8> : tensor<i32>
      %37 = stablehlo.broadcast_in_dim %c_10, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
      %38 = stablehlo.compare LT, %31, %37, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
      %39 = stablehlo.not %36 : tensor<1x1xi1>
      %40 = stablehlo.and %38, %39 : tensor<1x1xi1>
      %41 = stablehlo.convert %31 : (tensor<1x1xi32>) -> tensor<1x1xui32>
      %c_11 = stablehlo.constant dense<4294967295> : tensor<ui32>
      %42 = func.call @_where_2(%40, %41, %c_11) : (tensor<1x1xi1>, tensor<1x1xui32>, tensor<ui32>) -> tensor<1x1xui32>
      %43:5 = stablehlo.custom_call @AwsNeuronCustomNativeKernel(%arg43, %arg39, %arg40, %arg37, %arg38, %arg35, %arg36, %arg41, %arg42, %arg29, %arg30, %arg33, %arg34, %arg31, %arg32, %arg23, %arg24, %arg27, %arg28, %arg25, %arg26, %7, %25, %42) {api_version = 2 : i32, backend_config = "eyJmdW5jX25hbWUiOiAidHJhbnNmb3JtZXJfdGtnX2VudHJ5IiwgImdyaWQiOiBbMl0sICJoYXNfY29sbGVjdGl2ZXMiOiB0cnVlLCAia2VybmVsX3ZlcnNpb24iOiAxLCAia2xpcl9iaW5hcnkiOiB7ImJpbmFyeSI6ICIiLCAiaW5wdXRfbmFtZXMiOiBbIlgiLCAiV19xa3ZzXzAiLCAiV19xa3ZzXzEiLCAiV19vdXRzXzAiLCAiV19vdXRzXzEiLCAiV19nYXRlc18wIiwgIldfZ2F0ZXNfMSIsICJXX3Vwc18wIiwgIldfdXBzXzEiLCAiV19kb3duc18wIiwgIldfZG93bnNfMSIsICJXX2dhbW1hX3FrdnNfMCIsICJXX2dhbW1hX3FrdnNfMSIsICJXX2dhbW1hX21scHNfMCIsICJXX2dhbW1hX21scHNfMSIsICJLX2NhY2hlc18wIiwgIktfY2FjaGVzXzEiLCAiVl9jYWNoZXNfMCIsICJWX2NhY2hlc18xIiwgIlJvUEVfY29zIiwgIlJvUEVfc2luIiwgInByaW9yX2JpYXMiLCAiYWN0aXZlX2JpYXMiLCAic2xvdHMiXSwgIm91dHB1dF9uYW1lcyI6IFsiaGlkZGVuIiwgIktfY2FjaGVzXzAiLCAiS19jYWNoZXNfMSIsICJWX2NhY2hlc18wIiwgIlZfY2FjaGVzXzEiXX0sICJudW1fbGF5ZXJzIjogMiwgInJlcGxpY2FfZ3JvdXBzIjogW1swLCAxLCAyLCAzXV19", operand_layouts = [dense<[2, 1, 0]> : tensor<3xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[2, 1, 0]> : tensor<3xindex>, dense<[2, 1, 0]> : tensor<3xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>], output_operand_aliases = [#stablehlo.output_operand_alias<output_tuple_indices = [1], operand_index = 15, operand_tuple_indices = []>, #stablehlo.output_operand_alias<output_tuple_indices = [2], operand_index = 16, operand_tuple_indices = []>, #stablehlo.output_operand_alias<output_tuple_indices = [3], operand_index = 17, operand_tuple_indices = []>, #stablehlo.output_operand_alias<output_tuple_indices = [4], operand_index = 18, operand_tuple_indices = []>], result_layouts = [dense<[2, 1, 0]> : tensor<3xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>]} : (tensor<1x1x128xf32>, tensor<128x192xf32>, tensor<128x192xf32>, tensor<64x128xf32>, tensor<64x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x1x64x8xf32>, tensor<1x1x64x8xf32>, tensor<1x1x8x64xf32>, tensor<1x1x8x64xf32>, tensor<32x1x1xf32>, tensor<32x1x1xf32>, tensor<7x1xbf16>, tensor<1x1xbf16>, tensor<1x1xui32>) -> (tensor<1x1x128xf32>, tensor<1x1x64x8xf32>, tensor<1x1x64x8xf32>, tensor<1x1x8x64xf32>, tensor<1x1x8x64xf32>)
      sdy.return %43#0, %43#1, %43#2, %43#3, %43#4 : tensor<1x1x128xf32>, tensor<1x1x64x8xf32>, tensor<1x1x64x8xf32>, tensor<1x1x8x64xf32>, tensor<1x1x8x64xf32>
    } : (tensor<1x4x64x8xf32>, tensor<1x4x64x8xf32>, tensor<32x1x1xf32>, tensor<32x1x1xf32>, tensor<1x4x8x64xf32>, tensor<1x4x8x64xf32>, tensor<512x128xf32>, tensor<512x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<128x512xf32>, tensor<128x512xf32>, tensor<256x128xf32>, tensor<256x128xf32>, tensor<128x768xf32>, tensor<128x768xf32>, tensor<128x512xf32>, tensor<128x512xf32>, tensor<1x1x128xf32>, tensor<8x1x4x1xi1>, tensor<1x1xi32>) -> (tensor<1x1x128xf32>, tensor<1x4x64x8xf32>, tensor<1x4x64x8xf32>, tensor<1x4x8x64xf32>, tensor<1x4x8x64xf32>)
    return %0#0, %0#1, %0#2, %0#3, %0#4 : tensor<1x1x128xf32>, tensor<1x4x64x8xf32>, tensor<1x4x64x8xf32>, tensor<1x4x8x64xf32>, tensor<1x4x8x64xf32>
  }
  func.func private @_where(%arg0: tensor<7x1x1x1xi1>, %arg1: tensor<f32>, %arg2: tensor<f32>) -> tensor<7x1x1x1xf32> {
    %0 = stablehlo.broadcast_in_dim %arg1, dims = [] : (tensor<f32>) -> tensor<7x1x1x1xf32>
    %1 = stablehlo.broadcast_in_dim %arg2, dims = [] : (tensor<f32>) -> tensor<7x1x1x1xf32>
    %2 = stablehlo.select %arg0, %0, %1 : tensor<7x1x1x1xi1>, tensor<7x1x1x1xf32>
    return %2 : tensor<7x1x1x1xf32>
  }
  func.func private @_where_0(%arg0: tensor<1x1x1x1x1xi1>, %arg1: tensor<f32>, %arg2: tensor<f32>) -> tensor<1x1x1x1x1xf32> {
    %0 = stablehlo.broadcast_in_dim %arg1, dims = [] : (tensor<f32>) -> tensor<1x1x1x1x1xf32>
    %1 = stablehlo.broadcast_in_dim %arg2, dims = [] : (tensor<f32>) -> tensor<1x1x1x1x1xf32>
    %2 = stablehlo.select %arg0, %0, %1 : tensor<1x1x1x1x1xi1>, tensor<1x1x1x1x1xf32>
    return %2 : tensor<1x1x1x1x1xf32>
  }
  func.func private @_where_1(%arg0: tensor<1x1xi1>, %arg1: tensor<1x1xi32>, %arg2: tensor<i32>) -> tensor<1x1xi32> {
    %0 = stablehlo.broadcast_in_dim %arg2, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
    %1 = stablehlo.select %arg0, %arg1, %0 : tensor<1x1xi1>, tensor<1x1xi32>
    return %1 : tensor<1x1xi32>
  }
  func.func private @triu(%arg0: tensor<1x1x1xi1>) -> tensor<1x1x1xi1> {
    %0 = stablehlo.iota dim = 0 : tensor<1x1xi32>
    %c = stablehlo.constant dense<0> : tensor<i32>
    %1 = stablehlo.broadcast_in_dim %c, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
    %2 = stablehlo.add %0, %1 : tensor<1x1xi32>
    %3 = stablehlo.iota dim = 1 : tensor<1x1xi32>
    %4 = stablehlo.compare GE, %2, %3, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
    %5 = stablehlo.broadcast_in_dim %4, dims = [1, 2] : (tensor<1x1xi1>) -> tensor<1x1x1xi1>
    %c_0 = stablehlo.constant dense<false> : tensor<i1>
    %6 = stablehlo.broadcast_in_dim %c_0, dims = [] : (tensor<i1>) -> tensor<1x1x1xi1>
    %7 = stablehlo.select %5, %6, %arg0 : tensor<1x1x1xi1>, tensor<1x1x1xi1>
    return %7 : tensor<1x1x1xi1>
  }
  func.func private @_where_2(%arg0: tensor<1x1xi1>, %arg1: tensor<1x1xui32>, %arg2: tensor<ui32>) -> tensor<1x1xui32> {
    %0 = stablehlo.broadcast_in_dim %arg2, dims = [] : (tensor<ui32>) -> tensor<1x1xui32>
    %1 = stablehlo.select %arg0, %arg1, %0 : tensor<1x1xi1>, tensor<1x1xui32>
    return %1 : tensor<1x1xui32>
  }
}

// backend_config:
// {
//   "func_name": "transformer_tkg_entry",
//   "grid": [
//     2
//   ],
//   "has_collectives": true,
//   "kernel_version": 1,
//   "klir_binary": {
//     "binary": "",
//     "input_names": [
//       "X",
//       "W_qkvs_0",
//       "W_qkvs_1",
//       "W_outs_0",
//       "W_outs_1",
//       "W_gates_0",
//       "W_gates_1",
//       "W_ups_0",
//       "W_ups_1",
//       "W_downs_0",
//       "W_downs_1",
//       "W_gamma_qkvs_0",
//       "W_gamma_qkvs_1",
//       "W_gamma_mlps_0",
//       "W_gamma_mlps_1",
//       "K_caches_0",
//       "K_caches_1",
//       "V_caches_0",
//       "V_caches_1",
//       "RoPE_cos",
//       "RoPE_sin",
//       "prior_bias",
//       "active_bias",
//       "slots"
//     ],
//     "output_names": [
//       "hidden",
//       "K_caches_0",
//       "K_caches_1",
//       "V_caches_0",
//       "V_caches_1"
//     ]
//   },
//   "num_layers": 2,
//   "replica_groups": [
//     [
//       0,
//       1,
//       2,
//       3
//     ]
//   ]
// }

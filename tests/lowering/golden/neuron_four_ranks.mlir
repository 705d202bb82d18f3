module @jit__lambda attributes {mhlo.num_partitions = 4 : i32, mhlo.num_replicas = 1 : i32} {
  sdy.mesh @mesh = <["tp"=4]> {stablehlo.mesh = {axes = [{name = "tp", size = 4 : i64}]}}
  func.func public @main(%arg0: tensor<1x4x64x8xf32>, %arg1: tensor<1x4x64x8xf32>, %arg2: tensor<32x1x1xf32>, %arg3: tensor<32x1x1xf32>, %arg4: tensor<1x4x8x64xf32>, %arg5: tensor<1x4x8x64xf32>, %arg6: tensor<512x128xf32>, %arg7: tensor<512x128xf32>, %arg8: tensor<1x128xf32>, %arg9: tensor<1x128xf32>, %arg10: tensor<1x128xf32>, %arg11: tensor<1x128xf32>, %arg12: tensor<128x512xf32>, %arg13: tensor<128x512xf32>, %arg14: tensor<256x128xf32>, %arg15: tensor<256x128xf32>, %arg16: tensor<128x768xf32>, %arg17: tensor<128x768xf32>, %arg18: tensor<128x512xf32>, %arg19: tensor<128x512xf32>, %arg20: tensor<1x1x128xf32>, %arg21: tensor<8x1x4x1xi1>, %arg22: tensor<1x1xi32>) -> (tensor<1x1x128xf32> {jax.result_info = "result[0]"}, tensor<1x4x64x8xf32> {jax.result_info = "result[1][0]"}, tensor<1x4x64x8xf32> {jax.result_info = "result[1][1]"}, tensor<1x4x8x64xf32> {jax.result_info = "result[2][0]"}, tensor<1x4x8x64xf32> {jax.result_info = "result[2][1]"}) {
    %0:5 = sdy.manual_computation(%arg0, %arg1, %arg2, %arg3, %arg4, %arg5, %arg6, %arg7, %arg8, %arg9, %arg10, %arg11, %arg12, %arg13, %arg14, %arg15, %arg16, %arg17, %arg18, %arg19, %arg20, %arg21, %arg22) in_shardings=[<@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {}, {}]>, <@mesh, [{}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{"tp"}, {}]>, <@mesh, [{"tp"}, {}]>, <@mesh, [{}, {}]>, <@mesh, [{}, {}]>, <@mesh, [{}, {}]>, <@mesh, [{}, {}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{"tp"}, {}]>, <@mesh, [{"tp"}, {}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{}, {}, {}]>, <@mesh, [{}, {}, {"tp"}, {}]>, <@mesh, [{}, {}]>] out_shardings=[<@mesh, [{}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>] manual_axes={"tp"} (%arg23: tensor<1x1x64x8xf32>, %arg24: tensor<1x1x64x8xf32>, %arg25: tensor<32x1x1xf32>, %arg26: tensor<32x1x1xf32>, %arg27: tensor<1x1x8x64xf32>, %arg28: tensor<1x1x8x64xf32>, %arg29: tensor<128x128xf32>, %arg30: tensor<128x128xf32>, %arg31: tensor<1x128xf32>, %arg32: tensor<1x128xf32>, %arg33: tensor<1x128xf32>, %arg34: tensor<1x128xf32>, %arg35: tensor<128x128xf32>, %arg36: tensor<128x128xf32>, %arg37: tensor<64x128xf32>, %arg38: tensor<64x128xf32>, %arg39: tensor<128x192xf32>, %arg40: tensor<128x192xf32>, %arg41: tensor<128x128xf32>, %arg42: tensor<128x128xf32>, %arg43: tensor<1x1x128xf32>, %arg44: tensor<8x1x1x1xi1>, %arg45: tensor<1x1xi32>) {
      %1 = stablehlo.slice %arg44 [0:7, 0:1, 0:1, 0:1] : (tensor<8x1x1x1xi1>) -> tensor<7x1x1x1xi1>
      %2 = stablehlo.convert %1 : (tensor<7x1x1x1xi1>) -> tensor<7x1x1x1xi32>
      %c = stablehlo.constant dense<0> : tensor<i32>
      %3 = stablehlo.broadcast_in_dim %c, dims = [] : (tensor<i32>) -> tensor<7x1x1x1xi32>
      %4 = stablehlo.compare NE, %2, %3, SIGNED : (tensor<7x1x1x1xi32>, tensor<7x1x1x1xi32>) -> tensor<7x1x1x1xi1>
      %5 = stablehlo.convert %4 : (tensor<7x1x1x1xi1>) -> tensor<7x1x1x1xui8>
      %6 = stablehlo.reshape %5 : (tensor<7x1x1x1xui8>) -> tensor<7x1xui8>
      %7 = stablehlo.slice %arg44 [7:8, 0:1, 0:1, 0:1] : (tensor<8x1x1x1xi1>) -> tensor<1x1x1x1xi1>
      %8 = stablehlo.iota dim = 0 : tensor<1x1xi32>
      %9 = stablehlo.iota dim = 1 : tensor<1x1xi32>
      %c_0 = stablehlo.constant dense<0> : tensor<i32>
      %10 = stablehlo.broadcast_in_dim %c_0, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
      %11 = stablehlo.add %8, %10 : tensor<1x1xi32>
      %12 = stablehlo.compare EQ, %11, %9, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
      %13 = stablehlo.broadcast_in_dim %12, dims = [0, 2] : (tensor<1x1xi1>) -> tensor<1x1x1x1x1xi1>
      %14 = stablehlo.convert %7 : (tensor<1x1x1x1xi1>) -> tensor<1x1x1x1xi32>
      %c_1 = stablehlo.constant dense<0> : tensor<i32>
      %15 = stablehlo.broadcast_in_dim %c_1, dims = [] : (tensor<i32>) -> tensor<1x1x1x1xi32>
      %16 = stablehlo.compare NE, %14, %15, SIGNED : (tensor<1x1x1x1xi32>, tensor<1x1x1x1xi32>) -> tensor<1x1x1x1xi1>
      %17 = stablehlo.broadcast_in_dim %16, dims = [1, 2, 3, 4] : (tensor<1x1x1x1xi1>) -> tensor<1x1x1x1x1xi1>
      %c_2 = stablehlo.constant dense<false> : tensor<i1>
      %18 = stablehlo.broadcast_in_dim %c_2, dims = [] : (tensor<i1>) -> tensor<1x1x1x1x1xi1>
      %19 = stablehlo.compare NE, %17, %18, UNSIGNED : (tensor<1x1x1x1x1xi1>, tensor<1x1x1x1x1xi1>) -> tensor<1x1x1x1x1xi1>
      %20 = stablehlo.convert %19 : tensor<1x1x1x1x1xi1>
      %21 = stablehlo.and %13, %20 : tensor<1x1x1x1x1xi1>
      %22 = stablehlo.convert %21 : (tensor<1x1x1x1x1xi1>) -> tensor<1x1x1x1x1xui8>
      %23 = stablehlo.reshape %22 : (tensor<1x1x1x1x1xui8>) -> tensor<1x1xui8>
      %c_3 = stablehlo.constant dense<0> : tensor<i32>
      %24 = stablehlo.broadcast_in_dim %c_3, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
      %25 = stablehlo.compare GE, %arg45, %24, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
      %c_4 = stablehlo.constant dense<8> : tensor<i32>
      %26 = stablehlo.broadcast_in_dim %c_4, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
      %27 = stablehlo.compare LT, %arg45, %26, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
      %28 = stablehlo.and %25, %27 : tensor<1x1xi1>
      %c_5 = stablehlo.constant dense<8> : tensor<i32>
      %29 = func.call @_where(%28, %arg45, %c_5) : (tensor<1x1xi1>, tensor<1x1xi32>, tensor<i32>) -> tensor<1x1xi32>
      %c_6 = stablehlo.constant dense<8> : tensor<i32>
      %30 = stablehlo.broadcast_in_dim %c_6, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
      %31 = stablehlo.compare LT, %29, %30, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
      %32 = stablehlo.broadcast_in_dim %29, dims = [0, 1] : (tensor<1x1xi32>) -> tensor<1x1x1xi32>
      %33 = stablehlo.broadcast_in_dim %29, dims = [0, 2] : (tensor<1x1xi32>) -> tensor<1x1x1xi32>
      %34 = stablehlo.compare EQ, %32, %33, SIGNED : (tensor<1x1x1xi32>, tensor<1x1x1xi32>) -> tensor<1x1x1xi1>
      %35 = func.call @triu(%34) : (tensor<1x1x1xi1>) -> tensor<1x1x1xi1>
      %c_7 = stablehlo.constant dense<false> : tensor<i1>
      %36 = stablehlo.reduce(%35 init: %c_7) applies stablehlo.or across dimensions = [2] : (tensor<1x1x1xi1>, tensor<i1>) -> tensor<1x1xi1>
      %37 = stablehlo.not %36 : tensor<1x1xi1>
      %38 = stablehlo.and %31, %37 : tensor<1x1xi1>
      %39 = stablehlo.iota dim = 0 : tensor<1xui32>
      %c_8 = stablehlo.constant dense<1> : tensor<ui32>
      %40 = stablehlo.broadcast_in_dim %c_8, dims = [] : (tensor<ui32>) -> tensor<1xui32>
      %41 = stablehlo.multiply %39, %40 : tensor<1xui32>
      %42 = stablehlo.reshape %41 : (tensor<1xui32>) -> tensor<1x1x1xui32>
      %c_9 = stablehlo.constant dense<512> : tensor<ui32>
      %43 = stablehlo.broadcast_in_dim %c_9, dims = [] : (tensor<ui32>) -> tensor<1x1x1xui32>
      %44 = stablehlo.multiply %42, %43 : tensor<1x1x1xui32>
      %45 = stablehlo.convert %29 : (tensor<1x1xi32>) -> tensor<1x1xui32>
      %46 = stablehlo.broadcast_in_dim %45, dims = [1, 2] : (tensor<1x1xui32>) -> tensor<1x1x1xui32>
      %47 = stablehlo.add %44, %46 : tensor<1x1x1xui32>
      %c_10 = stablehlo.constant dense<8> : tensor<ui32>
      %48 = stablehlo.broadcast_in_dim %c_10, dims = [] : (tensor<ui32>) -> tensor<1x1x1xui32>
      %49 = stablehlo.multiply %42, %48 : tensor<1x1x1xui32>
      %50 = stablehlo.convert %29 : (tensor<1x1xi32>) -> tensor<1x1xui32>
      %51 = stablehlo.broadcast_in_dim %50, dims = [1, 2] : (tensor<1x1xui32>) -> tensor<1x1x1xui32>
      %52 = stablehlo.add %49, %51 : tensor<1x1x1xui32>
      %c_11 = stablehlo.constant dense<false> : tensor<i1>
      %53 = stablehlo.broadcast_in_dim %c_11, dims = [] : (tensor<i1>) -> tensor<1x1xi1>
      %c_12 = stablehlo.constant dense<8> : tensor<i32>
      %54 = stablehlo.broadcast_in_dim %c_12, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
      %55 = stablehlo.compare LT, %29, %54, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
      %c_13 = stablehlo.constant dense<4294967295> : tensor<ui32>
      %56 = func.call @_where_0(%55, %47, %c_13) : (tensor<1x1xi1>, tensor<1x1x1xui32>, tensor<ui32>) -> tensor<1x1x1xui32>
      %57 = stablehlo.reshape %56 : (tensor<1x1x1xui32>) -> tensor<1x1xui32>
      %c_14 = stablehlo.constant dense<4294967295> : tensor<ui32>
      %58 = func.call @_where_0(%38, %52, %c_14) : (tensor<1x1xi1>, tensor<1x1x1xui32>, tensor<ui32>) -> tensor<1x1x1xui32>
      %59 = stablehlo.reshape %58 : (tensor<1x1x1xui32>) -> tensor<1x1xui32>
      %60:5 = stablehlo.custom_call @AwsNeuronCustomNativeKernel(%arg43, %arg39, %arg40, %arg37, %arg38, %arg35, %arg36, %arg41, %arg42, %arg29, %arg30, %arg33, %arg34, %arg31, %arg32, %arg23, %arg24, %arg27, %arg28, %arg25, %arg26, %6, %23, %57, %59) {api_version = 2 : i32, backend_config = "eyJmdW5jX25hbWUiOiAidHJhbnNmb3JtZXJfdGtnX2VudHJ5IiwgInBsYXRmb3JtX3RhcmdldCI6IDMsICJrZXJuZWxfZm9ybWF0IjogImJpciIsICJrZXJuZWxfdmVyc2lvbiI6IDEsICJrbGlyX2JpbmFyeSI6IHsiYmluYXJ5IjogIiIsICJpbnB1dF9uYW1lcyI6IFsiWCIsICJXX3FrdnNfMCIsICJXX3FrdnNfMSIsICJXX291dHNfMCIsICJXX291dHNfMSIsICJXX2dhdGVzXzAiLCAiV19nYXRlc18xIiwgIldfdXBzXzAiLCAiV191cHNfMSIsICJXX2Rvd25zXzAiLCAiV19kb3duc18xIiwgIldfZ2FtbWFfcWt2c18wIiwgIldfZ2FtbWFfcWt2c18xIiwgIldfZ2FtbWFfbWxwc18wIiwgIldfZ2FtbWFfbWxwc18xIiwgIktfY2FjaGVzXzAubXVzdF9hbGlhc19pbnB1dCIsICJLX2NhY2hlc18xLm11c3RfYWxpYXNfaW5wdXQiLCAiVl9jYWNoZXNfMC5tdXN0X2FsaWFzX2lucHV0IiwgIlZfY2FjaGVzXzEubXVzdF9hbGlhc19pbnB1dCIsICJSb1BFX2NvcyIsICJSb1BFX3NpbiIsICJwcmlvcl9tYXNrIiwgImFjdGl2ZV9tYXNrIiwgIndpbmRvd19wbGFjZXMiLCAidmFsdWVfcGxhY2VzIl0sICJvdXRwdXRfbmFtZXMiOiBbImhpZGRlbiIsICJLX2NhY2hlc18wIiwgIktfY2FjaGVzXzEiLCAiVl9jYWNoZXNfMCIsICJWX2NhY2hlc18xIl0sICJ2ZXJzaW9uX2lkZW50aWZpZXIiOiAiIiwgImFsaWFzZXMiOiBbWzE1LCAxXSwgWzE2LCAyXSwgWzE3LCAzXSwgWzE4LCA0XV19LCAiZ3JpZCI6IDIsICJoYXNfY29sbGVjdGl2ZXMiOiB0cnVlLCAibWFjX2NvdW50IjogMTY1ODg4LCAicmVwbGljYV9ncm91cHMiOiBbWzAsIDEsIDIsIDNdXSwgIm51bV9sYXllcnMiOiAyfQ==", operand_layouts = [dense<[2, 1, 0]> : tensor<3xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[2, 1, 0]> : tensor<3xindex>, dense<[2, 1, 0]> : tensor<3xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>], output_operand_aliases = [#stablehlo.output_operand_alias<output_tuple_indices = [1], operand_index = 15, operand_tuple_indices = []>, #stablehlo.output_operand_alias<output_tuple_indices = [2], operand_index = 16, operand_tuple_indices = []>, #stablehlo.output_operand_alias<output_tuple_indices = [3], operand_index = 17, operand_tuple_indices = []>, #stablehlo.output_operand_alias<output_tuple_indices = [4], operand_index = 18, operand_tuple_indices = []>], result_layouts = [dense<[2, 1, 0]> : tensor<3xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>]} : (tensor<1x1x128xf32>, tensor<128x192xf32>, tensor<128x192xf32>, tensor<64x128xf32>, tensor<64x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x1x64x8xf32>, tensor<1x1x64x8xf32>, tensor<1x1x8x64xf32>, tensor<1x1x8x64xf32>, tensor<32x1x1xf32>, tensor<32x1x1xf32>, tensor<7x1xui8>, tensor<1x1xui8>, tensor<1x1xui32>, tensor<1x1xui32>) -> (tensor<1x1x128xf32>, tensor<1x1x64x8xf32>, tensor<1x1x64x8xf32>, tensor<1x1x8x64xf32>, tensor<1x1x8x64xf32>)
      sdy.return %60#0, %60#1, %60#2, %60#3, %60#4 : tensor<1x1x128xf32>, tensor<1x1x64x8xf32>, tensor<1x1x64x8xf32>, tensor<1x1x8x64xf32>, tensor<1x1x8x64xf32>
    } : (tensor<1x4x64x8xf32>, tensor<1x4x64x8xf32>, tensor<32x1x1xf32>, tensor<32x1x1xf32>, tensor<1x4x8x64xf32>, tensor<1x4x8x64xf32>, tensor<512x128xf32>, tensor<512x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<128x512xf32>, tensor<128x512xf32>, tensor<256x128xf32>, tensor<256x128xf32>, tensor<128x768xf32>, tensor<128x768xf32>, tensor<128x512xf32>, tensor<128x512xf32>, tensor<1x1x128xf32>, tensor<8x1x4x1xi1>, tensor<1x1xi32>) -> (tensor<1x1x128xf32>, tensor<1x4x64x8xf32>, tensor<1x4x64x8xf32>, tensor<1x4x8x64xf32>, tensor<1x4x8x64xf32>)
    return %0#0, %0#1, %0#2, %0#3, %0#4 : tensor<1x1x128xf32>, tensor<1x4x64x8xf32>, tensor<1x4x64x8xf32>, tensor<1x4x8x64xf32>, tensor<1x4x8x64xf32>
  }
  func.func private @_where(%arg0: tensor<1x1xi1>, %arg1: tensor<1x1xi32>, %arg2: tensor<i32>) -> tensor<1x1xi32> {
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
  func.func private @_where_0(%arg0: tensor<1x1xi1>, %arg1: tensor<1x1x1xui32>, %arg2: tensor<ui32>) -> tensor<1x1x1xui32> {
    %0 = stablehlo.broadcast_in_dim %arg0, dims = [1, 2] : (tensor<1x1xi1>) -> tensor<1x1x1xi1>
    %1 = stablehlo.broadcast_in_dim %arg2, dims = [] : (tensor<ui32>) -> tensor<1x1x1xui32>
    %2 = stablehlo.select %0, %arg1, %1 : tensor<1x1x1xi1>, tensor<1x1x1xui32>
    return %2 : tensor<1x1x1xui32>
  }
}

// backend_config:
// {
//   "func_name": "transformer_tkg_entry",
//   "grid": 2,
//   "has_collectives": true,
//   "kernel_format": "bir",
//   "kernel_version": 1,
//   "klir_binary": {
//     "aliases": [
//       [
//         15,
//         1
//       ],
//       [
//         16,
//         2
//       ],
//       [
//         17,
//         3
//       ],
//       [
//         18,
//         4
//       ]
//     ],
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
//       "K_caches_0.must_alias_input",
//       "K_caches_1.must_alias_input",
//       "V_caches_0.must_alias_input",
//       "V_caches_1.must_alias_input",
//       "RoPE_cos",
//       "RoPE_sin",
//       "prior_mask",
//       "active_mask",
//       "window_places",
//       "value_places"
//     ],
//     "output_names": [
//       "hidden",
//       "K_caches_0",
//       "K_caches_1",
//       "V_caches_0",
//       "V_caches_1"
//     ],
//     "version_identifier": ""
//   },
//   "mac_count": 165888,
//   "num_layers": 2,
//   "platform_target": 3,
//   "replica_groups": [
//     [
//       0,
//       1,
//       2,
//       3
//     ]
//   ]
// }

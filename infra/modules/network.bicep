// The network of the runners and of the function app that reaches their agents. What exists is used as it is.

param location string
param tags object
param namePrefix string
param createVirtualNetwork bool
param createSubnets bool
param createSecurityGroup bool
param createNatGateway bool
param virtualNetworkName string
param runnerSubnetName string
param functionSubnetName string
param securityGroupName string
param addressPrefix string
param runnerSubnetPrefix string
param functionSubnetPrefix string
param outboundPorts array
param dnsServers array
param securityRules array

var agentPort = '8437'
var makesSubnets = createVirtualNetwork || createSubnets
var makesNat = makesSubnets && createNatGateway

// Rules are stateful: answers need none. DNS, DHCP and the metadata service of Azure's platform are not subject to them.
var ownRules = [
  {
    name: 'agents-from-functions'
    properties: {
      priority: 100
      direction: 'Inbound'
      access: 'Allow'
      protocol: 'Tcp'
      sourceAddressPrefix: functionSubnetPrefix
      sourcePortRange: '*'
      destinationAddressPrefix: '*'
      destinationPortRange: agentPort
    }
  }
  {
    name: 'nothing-else-in'
    properties: {
      priority: 4096
      direction: 'Inbound'
      access: 'Deny'
      protocol: '*'
      sourceAddressPrefix: '*'
      sourcePortRange: '*'
      destinationAddressPrefix: '*'
      destinationPortRange: '*'
    }
  }
  {
    name: 'github-and-packages'
    properties: {
      priority: 1000
      direction: 'Outbound'
      access: 'Allow'
      protocol: 'Tcp'
      sourceAddressPrefix: '*'
      sourcePortRange: '*'
      destinationAddressPrefix: 'Internet'
      destinationPortRanges: outboundPorts
    }
  }
  {
    name: 'nothing-else-out'
    properties: {
      priority: 4096
      direction: 'Outbound'
      access: 'Deny'
      protocol: '*'
      sourceAddressPrefix: '*'
      sourcePortRange: '*'
      destinationAddressPrefix: '*'
      destinationPortRange: '*'
    }
  }
]

// Only where the VNet names servers of its own: the last rule would cut runners off from them.
var dnsRules = [
  {
    name: 'dns'
    properties: {
      priority: 1010
      direction: 'Outbound'
      access: 'Allow'
      protocol: '*'
      sourceAddressPrefix: '*'
      sourcePortRange: '*'
      destinationAddressPrefixes: dnsServers
      destinationPortRange: '53'
    }
  }
]

resource securityGroup 'Microsoft.Network/networkSecurityGroups@2024-05-01' = if (createSecurityGroup) {
  name: securityGroupName
  location: location
  tags: tags
  properties: {
    securityRules: concat(ownRules, empty(dnsServers) ? [] : dnsRules, securityRules)
  }
}

resource outbound 'Microsoft.Network/publicIPAddresses@2024-05-01' = if (makesNat) {
  name: '${namePrefix}-nat-ip'
  location: location
  tags: tags
  sku: {
    name: 'Standard'
  }
  properties: {
    publicIPAllocationMethod: 'Static'
    publicIPAddressVersion: 'IPv4'
  }
}

resource nat 'Microsoft.Network/natGateways@2024-05-01' = if (makesNat) {
  name: '${namePrefix}-nat'
  location: location
  tags: tags
  sku: {
    name: 'Standard'
  }
  properties: {
    idleTimeoutInMinutes: 10
    publicIpAddresses: [
      { id: outbound.id }
    ]
  }
}

var natGateway = makesNat ? { natGateway: { id: resourceId('Microsoft.Network/natGateways', '${namePrefix}-nat') } } : {}

var runnerSubnet = {
  addressPrefix: runnerSubnetPrefix
  defaultOutboundAccess: false
  networkSecurityGroup: {
    id: resourceId('Microsoft.Network/networkSecurityGroups', securityGroupName)
  }
}

var functionSubnet = {
  addressPrefix: functionSubnetPrefix
  delegations: [
    {
      name: 'functions'
      properties: {
        serviceName: 'Microsoft.App/environments'
      }
    }
  ]
}

resource network 'Microsoft.Network/virtualNetworks@2024-05-01' = if (createVirtualNetwork) {
  name: virtualNetworkName
  location: location
  tags: tags
  properties: {
    addressSpace: {
      addressPrefixes: [addressPrefix]
    }
    subnets: [
      { name: runnerSubnetName, properties: union(runnerSubnet, natGateway) }
      { name: functionSubnetName, properties: union(functionSubnet, natGateway) }
    ]
  }
  dependsOn: [securityGroup, nat]
}

resource existingNetwork 'Microsoft.Network/virtualNetworks@2024-05-01' existing = {
  name: virtualNetworkName
}

// One VNet takes one change at a time.
resource runners 'Microsoft.Network/virtualNetworks/subnets@2024-05-01' = if (!createVirtualNetwork && createSubnets) {
  parent: existingNetwork
  name: runnerSubnetName
  properties: union(runnerSubnet, natGateway)
  dependsOn: [securityGroup, nat]
}

resource functions 'Microsoft.Network/virtualNetworks/subnets@2024-05-01' = if (!createVirtualNetwork && createSubnets) {
  parent: existingNetwork
  name: functionSubnetName
  properties: union(functionSubnet, natGateway)
  dependsOn: [runners]
}

output functionSubnetId string = resourceId('Microsoft.Network/virtualNetworks/subnets', virtualNetworkName, functionSubnetName)
output outboundAddress string = makesNat ? outbound!.properties.ipAddress : ''
